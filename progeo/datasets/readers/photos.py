"""Positions of users' own photos from their EXIF metadata."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL.ExifTags import GPS, IFD, Base
from PIL.Image import Exif

from progeo.files import each_file
from progeo.image_files import open_image, taking_turns
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import few_that_fit_no_zone, project
from progeo.places.paths import find_paths
from progeo.printable import first_line

_NO_POSITION = "it has no position"
_UNREADABLE = "it cannot be read"


@dataclass(frozen=True)
class _Note:
    latitude: float
    longitude: float
    heading: float
    time: str


def read_photos(folder: Path) -> tuple[Catalogue, dict[Path, str]]:
    """Read position, heading and time of the photos of a folder.

    Returns:
        The catalogue; and the paths of skipped photos with the reason: without a readable position, too large to be
        opened, or one of a few that are too far from all others for one UTM zone.

    Raises:
        FileNotFoundError: the folder does not exist or has no photo.
        ValueError: no photo has a position, or too many for a mistake are far from the others.
    """
    paths = [path for batch in find_paths(folder).batches for path in batch.to_pylist()]
    description = f"reading the places of photos in {folder}"
    notes = list(each_file(lambda path: _note(folder / path), paths, total=len(paths), description=description))
    placed = [(path, note) for path, note in zip(paths, notes, strict=True) if isinstance(note, _Note)]
    skipped = {folder / path: note for path, note in zip(paths, notes, strict=True) if isinstance(note, str)}
    if not placed:
        other = next((f"; of {path}: {reason}" for path, reason in skipped.items() if reason != _NO_POSITION), "")
        raise ValueError(
            f"None of the {len(paths)} photos in {folder} says where it was taken (EXIF GPS position){other}."
        )
    latitude, longitude, heading = (
        np.array([getattr(note, name) for _, note in placed]) for name in ("latitude", "longitude", "heading")
    )
    far = few_that_fit_no_zone(latitude, longitude)
    latitude[far] = longitude[far] = np.nan
    positions = project(latitude, longitude, name=lambda row: str(folder / placed[row][0]))
    columns = {
        "path": pa.array([path for path, _ in placed], pa.large_string()),
        "east": positions.east,
        "north": positions.north,
        "zone": np.full(len(placed), positions.zone, np.int8),
        "heading": heading,
        "latitude": latitude,
        "longitude": longitude,
        "time": pa.array([note.time for _, note in placed]),
    }
    far_away = [folder / placed[row][0] for row in np.flatnonzero(far).tolist()]
    skipped |= dict.fromkeys(far_away, "it is too far from all others")
    return Catalogue(folder, pa.table(columns).filter(pa.array(~far))), skipped


def position_in(exif: Exif) -> tuple[float, float] | None:
    """Return the latitude and longitude in a photo's EXIF metadata; None if there are none, or impossible ones."""
    try:
        gps = exif.get_ifd(IFD.GPSInfo)
        latitude = _degrees(gps[GPS.GPSLatitude], gps[GPS.GPSLatitudeRef], "NS")
        longitude = _degrees(gps[GPS.GPSLongitude], gps[GPS.GPSLongitudeRef], "EW")
    except Exception:  # no position, no N/S/E/W reference, or corrupt EXIF
        return None
    is_place = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude != 0 or longitude != 0)
    return (latitude, longitude) if is_place else None


def _note(path: Path) -> _Note | str:
    """Read a photo's EXIF metadata, or return why it is skipped."""
    try:
        opened = open_image(path)
    except ValueError as error:  # too large
        return first_line(error)
    except Exception:  # not an image
        return _UNREADABLE
    try:
        with opened as image, taking_turns(image):  # a PNG may store it after the pixels
            exif = image.getexif()
        position = position_in(exif)
        gps = exif.get_ifd(IFD.GPSInfo)
        heading = float(gps[GPS.GPSImgDirection]) % 360 if GPS.GPSImgDirection in gps else np.nan
    except Exception:  # corrupt EXIF
        return _NO_POSITION
    if position is None:
        return _NO_POSITION
    time = exif.get_ifd(IFD.Exif).get(Base.DateTimeOriginal) or exif.get(Base.DateTime) or ""
    return _Note(*position, heading, str(time))


def _degrees(parts: Any, side: str, sides: str) -> float:
    """Convert degrees, minutes and seconds (the last ones may be missing) to degrees; negative on the second side."""
    numbers = np.atleast_1d(np.asarray(parts, np.float64))
    if not (numbers[1:] <= 60).all():
        raise ValueError(f"minutes and seconds must be at most 60, got {parts}.")
    value = float((numbers / (1, 60, 3600)[: len(numbers)]).sum())
    return (value, -value)[sides.index(side.strip("\0 ").upper()[:1] or "?")]
