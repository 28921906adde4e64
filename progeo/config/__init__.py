"""Settings of every command, and how they are read."""
