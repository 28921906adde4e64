"""Measuring an encoder: descriptors, nearest neighbours, recall, report."""
