"""Localize photos over HTTP."""
