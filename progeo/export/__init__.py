"""The encoder leaves as weights that anyone can load, and weights of other programs come in."""
