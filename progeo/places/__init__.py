"""Where images are: names, catalogues, cells, groups, positives. NumPy and Arrow only, never torch."""
