"""Measure the recall of an encoder. The same as `progeo evaluate`."""

import sys

from progeo.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
