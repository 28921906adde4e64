"""Stage 2: train the image encoder. The same as `progeo stage2`."""

import sys

from progeo.cli import main

if __name__ == "__main__":
    main(["stage2", *sys.argv[1:]])
