"""Localize photos over HTTP, and the pages of that."""
