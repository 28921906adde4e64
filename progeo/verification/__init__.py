"""Match pairs of photos by local features and check the matches by geometry."""
