"""Readers of tables, photos and other programs' ground truth, one file per source."""
