"""The pages of the service: one to localize photos on, and one about the place index.

The pages hold no fact about the index. Their scripts ask for its points and its card, with the token of the reader.
"""

import math
import threading
from typing import Any

import numpy as np

from progeo.export.card import card_rows
from progeo.export.weights import read_encoder_metadata
from progeo.localization.index_folder import ENCODER_FOLDER
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.place_index import PlaceIndex
from progeo.models.encoder import spec_to_json
from progeo.pages.maps import Map, Tiles, map_frame
from progeo.pages.page import Page, served_page
from progeo.places.coordinates import METERS_PER_DEGREE


class ServicePages:
    """The pages of a service and their data."""

    def __init__(self, *, max_upload_mb: int, tile_url: str | None = None, tile_attribution: str = "") -> None:
        """Render the pages.

        Args:
            max_upload_mb: maximum size of a request in megabytes.
            tile_url: address of street tiles with {z}, {x} and {y}; None for none.
            tile_attribution: text about their source.

        Raises:
            ValueError: `tile_url` is no such address.
        """
        self._tiles = None if tile_url is None else Tiles(tile_url, tile_attribution, at_once=True)
        self.localize: Page = served_page(
            "localize.html",
            title="Where was this photo taken?",
            scripts=["localize.js"],
            tiles=self._tiles,
            max_upload_mb=max_upload_mb,
        )
        self.index: Page = served_page("index.html", title="The place index", scripts=["index.js"], tiles=self._tiles)
        self._lock = threading.Lock()
        self._drawn: tuple[PlaceIndex, dict[str, Any]] | None = None

    def points(self, index: PlaceIndex) -> dict[str, Any]:
        """Return the data of the map of an index, see `progeo.pages.maps.Map.data`; computed once for each index."""
        with self._lock:
            if self._drawn is None or self._drawn[0] is not index:
                (positions,) = (frame := map_frame(index.images)).positions
                name = f"{index.metadata.rows_are} of the index"
                self._drawn = index, Map(frame.unit, positions, name, tiles=self._tiles).data()
            return self._drawn[1]

    def card(self, index: PlaceIndex) -> dict[str, Any]:
        """Return what the page on an index says: numbers and facts, all of them texts by their names."""
        metadata = read_encoder_metadata(index.folder / ENCODER_FOLDER)
        encoder = {**spec_to_json(index.encoder.spec), **metadata["encoder"]}  # files of earlier versions lack fields
        classifier = None if index.cells is None else index.cells.classifier
        return {
            "figures": _figures(index, self.points(index)),
            "index": _facts(index),
            "encoder": card_rows({**metadata, "encoder": encoder}, classifier),
        }


def _figures(index: PlaceIndex, points: dict[str, Any]) -> dict[str, str]:
    num_known = points["database"]["known"]
    figures = {index.metadata.rows_are: f"{index.metadata.images:,}"}
    if num_known < index.metadata.images:
        figures["with a position"] = f"{num_known:,}"
    if points["bounds"] is not None:
        figures["area, east by north"] = _extent(points)
    return figures


def _extent(points: dict[str, Any]) -> str:
    south, west, north, east = points["bounds"]
    units_m = [1.0, 1.0]
    if points["unit"] == "degrees":
        units_m = [METERS_PER_DEGREE * math.cos(math.radians((south + north) / 2)), METERS_PER_DEGREE]
    sides_m = [(east - west) * units_m[0], (north - south) * units_m[1]]
    if max(sides_m) < 1000:
        return f"{sides_m[0]:.0f} x {sides_m[1]:.0f} m"
    return f"{sides_m[0] / 1000:,.1f} x {sides_m[1] / 1000:,.1f} km"


def _facts(index: PlaceIndex) -> dict[str, str]:
    metadata, calibration = index.metadata, index.metadata.calibration
    num_headings = int(np.isfinite(index.images.heading).sum())
    height, width = metadata.image_size
    return {
        "generation": str(metadata.generation),
        "search": f"faiss {metadata.kind}" if metadata.engine is None else metadata.engine.name,
        **({"cells": f"{metadata.cell_side_m} m a side"} if metadata.holds_classes else {}),
        "with a viewing direction": f"{num_headings:,} of {metadata.rows}",
        "photos": f"preprocessed by {metadata.query_preprocessing}, {height} x {width} pixels",
        "confidence": "not calibrated, so no answer has one"
        if calibration is None
        else f"calibrated on {calibration.num_photos:,} photos, for positions within {calibration.radius_m:g} m; "
        f"expected calibration error {100 * calibration.error:.1f} %",
        **({} if metadata.holds_classes else _verification_facts(metadata)),
    }


def _verification_facts(metadata: IndexMetadata) -> dict[str, str]:
    verification = metadata.verification
    if verification is None:
        told = "not calibrated, so only photos of requests that want it are verified"
    elif verification.below == 0:
        told = f"only photos of requests that want it are verified, as {verification.matcher} did not help others"
    else:
        which = "all photos" if verification.below == 1 else f"photos with a confidence below {verification.below:.2f}"
        told = (
            f"{which} are matched with their first {verification.top} images by {verification.matcher}; expected "
            f"calibration error {100 * verification.calibration.error:.1f} % if all are verified"
        )
    local = "stored" if metadata.stores_features else "not stored, so images are read for verification"
    return {"verification": told, "local features": local}
