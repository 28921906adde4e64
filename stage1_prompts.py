"""Stage 1: learn a text prompt for every place. The same as `progeo stage1`."""

import sys

from progeo.cli import main

if __name__ == "__main__":
    main(["stage1", *sys.argv[1:]])
