"""Weights of other programs come in: what a file holds, of which kind it is, and the encoder made of it.

Nothing in a file is ever run: pickles are read with stubs for the few names that weights need.
"""
