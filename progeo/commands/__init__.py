"""The commands: each file reads like a paragraph, and only here are the settings of a command read."""
