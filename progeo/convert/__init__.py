"""Weights of other programs come in: of which kind a state dict is, and the encoder made of it."""
