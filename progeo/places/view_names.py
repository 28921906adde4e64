"""Names of the perspective views that a panorama is cut into."""

from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import band_letters
from progeo.places.filename import FIELDS, ParsedNames, complete_fields, format_names, parse_columns, says_position
from progeo.places.geographic import degrees_of

_KEPT = ("letter", "pano_id", "height", "timestamp", "note")


def panorama_fields(catalogue: Catalogue) -> ParsedNames:
    """Build the name fields shared by the views of each panorama: position, id, and others from the panorama's name.

    Raises:
        ValueError: a panorama has no position, or two panoramas have the same position and id.
    """
    count, paths = len(catalogue), catalogue.table["path"]
    kept = parse_columns(paths, _KEPT) if says_position(paths).all() else vars(complete_fields(count))
    ids = [
        known or PurePosixPath(path).stem.replace("@", "_")
        for known, path in zip(kept["pano_id"], paths.to_pylist(), strict=True)
    ]
    if np.isnan(catalogue.east).any():
        raise ValueError(
            f"{catalogue.folder}: {catalogue.name(int(np.isnan(catalogue.east).argmax()))} has no position."
        )
    centimeters = {name: np.round(catalogue.table[name], 2) for name in ("east", "north")}  # as rounded in names
    keys = pa.table({**centimeters, "pano_id": ids})
    counts = keys.group_by(["east", "north", "pano_id"]).aggregate([([], "count_all")])
    if len(counts) < count:
        twice = counts.sort_by([("count_all", "descending")])["pano_id"][0]
        raise ValueError(f"{catalogue.folder} holds two panoramas {twice} at the same position: remove one of them.")
    latitude, longitude = degrees_of(catalogue)
    letter = np.where(catalogue.zone > 0, band_letters(latitude), "")
    return complete_fields(
        count,
        east=catalogue.east,
        north=catalogue.north,
        zone=catalogue.zone,
        letter=np.where(letter == "", kept["letter"], letter),
        latitude=latitude,
        longitude=longitude,
        pano_id=np.array(ids, object),
        heading=catalogue.heading,
        pitch=np.zeros(count),
        height=kept["height"],
        timestamp=kept["timestamp"],
        note=kept["note"],
    )


def views_of(panoramas: ParsedNames, row: int, count: int) -> tuple[list[str], np.ndarray]:
    """Return the names and headings of the views of one panorama.

    Args:
        panoramas: result of `panorama_fields`.
        row: row of the panorama.
        count: number of views, in equal steps clockwise from north, or from the panorama's center without a heading.

    Returns:
        `count` names; and the views' directions in degrees clockwise from the panorama's center, (count,). Views of a
        panorama without a heading have no heading either.
    """
    headings = np.arange(count) * 360 / count
    center = panoramas.heading[row]
    fields = {field: np.repeat(getattr(panoramas, field)[row : row + 1], count) for field in FIELDS}
    fields["tile"] = np.array([f"{number:02d}" for number in range(count)])
    fields["heading"] = np.full(count, np.nan) if np.isnan(center) else headings
    return format_names(ParsedNames(**fields)), headings - np.nan_to_num(center)
