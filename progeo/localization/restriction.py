"""What restricts a search of a place index to some of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from progeo.localization.index_metadata import PartMetadata
from progeo.places.nearby import HeadingRange, Near


@dataclass(frozen=True)
class Restriction:
    """What all rows that a search may find have in common."""

    near: Near | None = None
    """They lie within this circle, inclusive; None for anywhere. Rows without a position lie in no circle."""
    heading: HeadingRange | None = None
    """They look in one of these directions, inclusive, or their heading is unknown; None for any."""

    def check_known(self, parts: Sequence[PartMetadata], folder: Path) -> None:
        """Check that something of what restricts is known of the images of an index.

        Args:
            folder: folder of the index.

        Raises:
            ValueError: no position or heading is known.
        """
        if self.near is not None and not any(part.num_degrees for part in parts):
            raise _unknown("near", "latitude and longitude", folder)
        if self.heading is not None and not any(part.num_headings for part in parts):
            raise _unknown("heading", "heading", folder)


def _unknown(name: str, what: str, folder: Path) -> ValueError:
    return ValueError(f"`{name}` cannot be used: no {what} is known in {folder}. Leave it out.")
