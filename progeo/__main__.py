"""`python -m progeo` is the command `progeo`."""

from progeo.cli import main

main()
