"""Localizing photos: the place index, and how sure a position is."""
