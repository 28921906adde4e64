"""`python -m progeo` is the command `progeo`."""

from progeo.cli import main

if __name__ == "__main__":  # not in the processes that it starts
    main()
