"""Stage 1: learn a text prompt for every place. The same as `progeo train prompts`."""

import sys

from progeo.cli import main

if __name__ == "__main__":
    main(["train", "prompts", *sys.argv[1:]])
