"""A toy city in the folders and names of the field, so that everything runs with no download."""

from progeo.toy_city.render import render_toy_city

__all__ = ["render_toy_city"]
