"""Measure an encoder: descriptors, nearest neighbors, recall, report."""
