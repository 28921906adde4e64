"""The commands, one per file. Only this package reads the settings of commands."""
