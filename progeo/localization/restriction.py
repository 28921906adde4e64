"""What restricts a search of a place index to some of its rows."""

from dataclasses import dataclass

from progeo.places.nearby import HeadingRange, Near


@dataclass(frozen=True)
class Restriction:
    """What all rows that a search may find have in common."""

    near: Near | None = None
    """They lie within this circle, inclusive; None for anywhere. Rows without a position lie in no circle."""
    heading: HeadingRange | None = None
    """They look in one of these directions, inclusive, or their heading is unknown; None for any."""
