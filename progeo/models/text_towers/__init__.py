"""Text towers of all CLIPs: their tokenizers, their features, and those of prompts with learned vectors."""
