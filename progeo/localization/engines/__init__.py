"""Engines that store and search the descriptors of a place index."""
