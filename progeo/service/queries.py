"""What a request asks about its photos."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from fastapi import HTTPException

from progeo.localization.localizations import Localization
from progeo.localization.localize import verified_below
from progeo.localization.place_index import PlaceIndex
from progeo.models.preprocessing import changes_once
from progeo.places.nearby import HeadingRange, Near, parse_heading, parse_near
from progeo.service.decoding import Decoding
from progeo.service.options import ServiceOptions

_MAX_TOP = 100
_FORMATS = ("json", "geojson")


@dataclass(frozen=True)
class Query:
    """How the photos of a request are localized."""

    top: int
    threshold: float
    near: Near | None
    heading: HeadingRange | None
    verify: bool | None
    """Whether matches are verified; None as the index was calibrated."""

    def localize(self, index: PlaceIndex, photos: Sequence[np.ndarray], batch_size: int) -> list[Localization]:
        """Localize photos, uint8 (H, W, 3), see `PlaceIndex.localize`."""
        return index.localize(
            photos,
            top=self.top,
            threshold=self.threshold,
            near=self.near,
            heading=self.heading,
            verify=self.verify,
            batch_size=batch_size,
        )

    def decoding(self, index: PlaceIndex) -> Decoding:
        """Return how photos are decoded: as small as they can be without changing a result."""
        extractor, *others = index.query_extractors
        verifies = verified_below(index, self.verify) > 0
        if others or verifies or not changes_once(extractor.preprocessing):
            return Decoding(index.metadata.orientation)
        return Decoding(
            index.metadata.orientation, index.metadata.query_preprocessing, extractor.image_size, extractor.resize
        )


def parse_query(settings: Mapping[str, str], options: ServiceOptions) -> tuple[Query, str]:
    """Parse the fields of a form besides photos, and return the query and the format of its answer.

    Raises:
        HTTPException: a value is not allowed.
    """
    values: dict[str, Any] = {name: SETTINGS[name].parse(text) for name, text in settings.items() if text}
    query = Query(
        values.get("top", 5),
        values.get("threshold", options.threshold),
        values.get("near"),
        values.get("heading"),
        values.get("verify"),
    )
    return query, values.get("format", _FORMATS[0])


@dataclass(frozen=True)
class Setting:
    """A field of the form."""

    help: str
    """What it is for, for the documentation of the service."""
    converted: Callable[[str], Any]
    """Converts its text; a ValueError tells what is wrong."""

    def parse(self, text: str) -> Any:
        """Convert its text, or refuse it.

        Raises:
            HTTPException: the text is not allowed.
        """
        try:
            return self.converted(text)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None


def _top(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= _MAX_TOP:
        raise ValueError(f"`top` is a number of matches from 1 to {_MAX_TOP}, got {text!r}.")
    return int(text)


def _threshold(text: str) -> float:
    if not re.fullmatch(r"[01]|[01]?\.[0-9]+", text) or float(text) > 1:
        raise ValueError(f"`threshold` is a confidence from 0 to 1, such as 0.5, got {text!r}.")
    return float(text)


def _verify(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"`verify` is true or false, got {text!r}.")
    return text == "true"


def _format(text: str) -> str:
    if text not in _FORMATS:
        raise ValueError(f"`format` is {' or '.join(_FORMATS)}, got {text!r}.")
    return text


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "top": Setting(f"Number of matches of each photo, from 1 to {_MAX_TOP}; 5 if it is left out.", _top),
        "threshold": Setting("Minimum confidence of a known position, from 0 to 1.", _threshold),
        "near": Setting(
            "Rough position LAT,LON,RADIUS_M: only images within RADIUS_M meters of it can match.", parse_near
        ),
        "heading": Setting(
            "Rough direction DEG,TOLERANCE: only images with a heading within TOLERANCE degrees of DEG, or without a "
            "known heading, can match.",
            parse_heading,
        ),
        "verify": Setting(
            "true matches the photo with its candidates, point by point; false does not. Left out, this is done as the "
            "index was calibrated.",
            _verify,
        ),
        "format": Setting(f"Format of the answer: {' or '.join(_FORMATS)}.", _format),
    }
)
"""Fields of the form besides the photos."""
