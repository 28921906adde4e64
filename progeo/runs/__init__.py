"""Runs of training as texts, pages and pictures."""
