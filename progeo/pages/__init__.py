"""HTML pages of one look: each is one file that opens offline and asks no host for anything."""
