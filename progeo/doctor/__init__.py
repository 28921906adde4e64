"""What this machine has, what is missing, and what fits into its memory."""
