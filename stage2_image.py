"""Stage 2: train the image encoder. The same as `progeo train encoder`."""

import sys

from progeo.cli import main

if __name__ == "__main__":
    main(["train", "encoder", *sys.argv[1:]])
