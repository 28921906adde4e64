"""The stages: the only place where places, pixels, networks and the engine meet."""
