"""Readers of tables, photos and ground truth of other programs, one file per source."""
