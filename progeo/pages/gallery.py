"""Rows of photos on a page: each photo beside others, such as a query beside its predictions."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torchvision.transforms.v2.functional import to_pil_image

from progeo.files import each_file
from progeo.image_files import Orientation, open_image, taking_turns
from progeo.pixels import pixels_of
from progeo.printable import escaped
from progeo.remote_files import RemotePath

SIDE_PX = 320
"""Longer side of a picture in pixels."""
_QUALITY = 70
_METHOD = 2
"""Effort of the compression: 6 % larger than the usual 4, and written in less than half the time."""
_MARKS = MappingProxyType({"wrong": 0, "correct": 1, "": 2})
MAX_LINES = 100
"""Maximum number of lines between two photos."""
_DIGITS = 6
"""Significant digits of the numbers of an item."""

Mark = Literal["correct", "wrong", ""]
Format = Literal["rank", "meters", "descriptor", "percent", "inliers", "text"]
Order = Literal["given", "reversed", "name"]


class Photos:
    """The photos of a page, each stored once."""

    def __init__(self, orientation: Orientation = "exif") -> None:
        """Begin without photos.

        Args:
            orientation: how pictures are rotated, see `pixels_of`: as in what computed the lines between them.
        """
        self._orientation = orientation
        self._numbers: dict[tuple[str, Path | RemotePath | None], int] = {}
        self._embedded: set[int] = set()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def num_embedded(self) -> int:
        """Number of photos with a picture."""
        return len(self._embedded)

    def add(self, name: str, path: Path | RemotePath | None, *, embedded: bool = True) -> int:
        """Add a photo, or find one that was added, and return its number.

        Args:
            name: name on the page.
            path: file to read its picture from; None if there is none.
            embedded: whether the page shows a picture of it, or only its name.
        """
        number = self._numbers.setdefault((name, path), len(self._numbers))
        if embedded and path is not None:
            self._embedded.add(number)
        return number

    def data(self, *, show_paths: bool) -> list[list[str | bool | None]]:
        """Return the name of each photo, its picture in base64 and its path, for the script of the page.

        A picture is "" if the photo cannot be opened, None if it is not embedded, and False if there is no file.
        """
        entries = list(self._numbers)
        numbers = sorted(self._embedded)
        paths = [path for number in numbers if (path := entries[number][1]) is not None]
        picture = partial(_picture, orientation=self._orientation)
        pictures = dict(zip(numbers, each_file(picture, paths, total=len(paths), description="pictures"), strict=True))
        return [
            [
                escaped(name),
                pictures.get(number) if path else False,
                *([escaped(str(path))] if show_paths and path is not None else []),
            ]
            for number, (name, path) in enumerate(entries)
        ]


@dataclass(frozen=True)
class Measure:
    """What is told of every item, a column of the CSV file."""

    name: str
    """Name of the column, such as `distance_m`."""
    format: Format
    """How the page shows a value."""


@dataclass(frozen=True)
class Item:
    """A photo beside that of a row."""

    photo: int
    """Number that `Photos.add` returned."""
    mark: Mark = ""
    values: Sequence[float | str | None] = ()
    """Value of each measure of the gallery; None and NaN are not shown."""
    lines: Sequence[Sequence[float]] = ()
    """Points that match: x and y in the photo of the row, x and y in this photo, as fractions of width and height from
    the upper left corner. At most `MAX_LINES` of them, evenly chosen, are drawn between the enlarged photos."""


@dataclass(frozen=True)
class Strip:
    """Items under one title."""

    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Row:
    """A photo and the strips beside it."""

    key: int
    """Number of the row in the address of the page, and of its point on the map."""
    photo: int | None
    """Number that `Photos.add` returned; None for a row without a photo of its own."""
    strips: Sequence[Strip] = ()
    mark: Mark = ""
    facets: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Value of each filter of the gallery, or several values: each of them shows the row."""
    note: str = ""
    """A sentence under the photo."""
    link: str = ""
    """Address of a street map of its position; empty if there is none."""


@dataclass(frozen=True)
class Gallery:
    """Rows of photos, which the page filters, orders and shows in parts."""

    photos: Photos
    rows: Sequence[Row]
    measures: Sequence[Measure] = ()
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of a filter -> its values, in the order of the page."""
    orders: Mapping[str, Order] = field(default_factory=lambda: {"as listed": "given", "by name": "name"})
    """Name of an order -> what it is; the first is that of the page when it opens."""
    noun: str = "query"
    """What a row is, for the address of the page and its labels."""
    plural: str = "queries"
    """What rows are; also the name of the CSV file."""

    def data(self, *, show_paths: bool, spreadsheet_safe: bool = False) -> dict[str, Any]:
        """Return the content for the script of the page.

        Args:
            show_paths: tell the path of each photo.
            spreadsheet_safe: whether formulas in the CSV file get an apostrophe in front, see `write_csv`.
        """
        titles: dict[str, int] = {}
        numbers = {name: {value: number for number, value in enumerate(found)} for name, found in self.filters.items()}
        rows = [self._row(row, titles, numbers) for row in self.rows]
        return {
            "noun": self.noun,
            "plural": self.plural,
            "spreadsheet_safe": spreadsheet_safe,
            "measures": [[measure.name, measure.format] for measure in self.measures],
            "filters": {name: [escaped(value) for value in values] for name, values in self.filters.items()},
            "orders": list(self.orders.items()),
            "photos": self.photos.data(show_paths=show_paths),
            "rows": rows,
            "titles": [escaped(title) for title in titles],
        }

    def _row(self, row: Row, titles: dict[str, int], numbers: Mapping[str, Mapping[str, int]]) -> list[Any]:
        values = [_numbers(found, row.facets.get(name, "")) for name, found in numbers.items()]
        strips = [
            [
                titles.setdefault(strip.title, len(titles)),
                [[item.photo, _MARKS[item.mark], *map(_compact, item.values)] for item in strip.items],
                *_lines(strip.items),
            ]
            for strip in row.strips
        ]
        return [
            row.key,
            row.photo,
            _MARKS[row.mark],
            values,
            strips,
            escaped(row.note),
            *([row.link] if row.link else []),
        ]


def _numbers(found: Mapping[str, int], value: str | Sequence[str]) -> int | list[int]:
    return found.get(value, -1) if isinstance(value, str) else [found[each] for each in value]


def _lines(items: Sequence[Item]) -> list[dict[str, list[int]]]:
    """Return the lines of items by their number, in thousandths, or nothing if no item has any."""
    found = {
        str(number): [
            round(1000 * fraction)
            for line in item.lines[:: math.ceil(len(item.lines) / MAX_LINES)]
            for fraction in line
        ]
        for number, item in enumerate(items)
        if len(item.lines)
    }
    return [found] if found else []


def _compact(value: float | str | None) -> float | str | None:
    if value is None or isinstance(value, str):
        return None if value is None else escaped(value)
    number = float(value)
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None


def _picture(path: Path | RemotePath, orientation: Orientation) -> str:
    """Return a small WebP picture of a photo in base64; empty if the photo cannot be opened."""
    stream = io.BytesIO()
    try:
        with open_image(path) as image, taking_turns(image):
            image.thumbnail((SIDE_PX, SIDE_PX))
            to_pil_image(pixels_of(image, orientation)).save(stream, "WEBP", quality=_QUALITY, method=_METHOD)
    except Exception:  # Pillow's decoders raise errors of many kinds, and no picture is worth losing the page.
        return ""
    return base64.b64encode(stream.getvalue()).decode("ascii")
