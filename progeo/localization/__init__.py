"""Localize photos: place indexes, their calibrated confidence, and the results."""
