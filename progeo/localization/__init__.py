"""Localizing photos: the place index and its calibrated confidence."""
