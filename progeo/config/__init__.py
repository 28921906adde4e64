"""Settings of every command, parsed from the command line and YAML."""
