"""A synthetic city with the folders and file names of the field, to run everything without a download."""

from progeo.toy_city.render import render_toy_city

__all__ = ["render_toy_city"]
