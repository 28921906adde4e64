"""Geographic data of images: names, catalogues, cells, groups, positives. NumPy and Arrow only, no torch."""
