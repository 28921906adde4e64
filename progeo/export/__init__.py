"""The encoder leaves: weights that anyone can load."""
