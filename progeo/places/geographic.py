"""Positions of catalogues in degrees and in meters, and folders of links with standard names."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import (
    SOUTHERN_ORIGIN_M,
    Hemisphere,
    band_letters,
    degrees_of_utm,
    fits_one_zone,
    hemispheres,
    middle_of,
    project,
    zone_of,
)
from progeo.places.filename import (
    Unparsed,
    complete_fields,
    format_names,
    parse_columns,
    says_position,
    warn_of_unparsed,
)
from progeo.remote_files import RemotePath

_LOGGER = logging.getLogger("progeo")
_ZONE_WIDTH_M = 1e6
_LETTERS = pa.dictionary(pa.int32(), pa.large_string())
_ROWS_AT_ONCE = 2**20
_NAMES: dict[int, Literal["north", "south"]] = {Hemisphere.NORTHERN: "north", Hemisphere.SOUTHERN: "south"}
_HEMISPHERES: dict[str | None, Hemisphere] = {"north": Hemisphere.NORTHERN, "south": Hemisphere.SOUTHERN}


def degrees_of(catalogue: Catalogue) -> np.ndarray:
    """Return latitude and longitude in degrees, (2, N), NaN where unknown.

    They are the stored degrees, else converted from UTM, else parsed from the names. The latitude is unknown if nothing
    tells the hemisphere of UTM coordinates.
    """
    if "latitude" in catalogue.table.column_names:
        return np.stack([catalogue.table[name].to_numpy() for name in ("latitude", "longitude")])
    letters, named = _named(catalogue)
    hemisphere = hemispheres(catalogue.north, letters=[letters], latitude=named[0])
    from_utm = degrees_of_utm(catalogue.east, catalogue.north, catalogue.zone, hemisphere)
    return np.where(np.isfinite(from_utm), from_utm, named)


def hemispheres_of(catalogue: Catalogue) -> np.ndarray:
    """Determine the hemisphere whose origin each northing is counted from, values of `Hemisphere`, int8 (N,)."""
    if "latitude" in catalogue.table.column_names:
        return hemispheres(catalogue.north, latitude=catalogue.table["latitude"].to_numpy())
    letters, named = _named(catalogue)
    return hemispheres(catalogue.north, letters=[letters], latitude=named[0])


def cell_corners(centers: Catalogue, *, side_m: float) -> np.ndarray:
    """Compute longitude and latitude of the corners of square cells, (C, 4, 2), NaN where unknown.

    They go counterclockwise from the south-west, as in GeoJSON.

    Args:
        centers: the centers of C cells.
        side_m: length of the sides, along UTM east and north.
    """
    east, north = (np.tile(signs, len(centers)) * side_m / 2 for signs in ([-1, 1, 1, -1], [-1, -1, 1, 1]))
    east += np.repeat(centers.east, 4)
    north += np.repeat(centers.north, 4)
    latitude, longitude = degrees_of_utm(east, north, np.repeat(centers.zone, 4), np.repeat(hemispheres_of(centers), 4))
    return np.stack([longitude, latitude], axis=1).reshape(-1, 4, 2)


def positions_m(*catalogues: Catalogue) -> list[np.ndarray]:
    """Compute east and north of the images of each catalogue in one common frame, (N, 2) meters.

    If all images lie in one UTM zone, the positions are their UTM coordinates. Otherwise, if latitude and longitude are
    known and not too far apart, all are projected to the zone of the median position; else 1000 km times the zone is
    added to east, so that images of different zones are far apart. Images without a zone are assigned to the only zone
    of the others. For a set on both sides of the equator, northings are counted from the equator.

    Raises:
        ValueError: images without a zone although the others lie in several.
    """
    zones = _zones(catalogues)
    degrees = _degrees_together(catalogues) if len(zones) > 1 else None
    if degrees is not None:
        positions = project(*degrees)
        together = np.stack([positions.east, positions.north], axis=1)
        return np.split(together, np.cumsum([len(catalogue) for catalogue in catalogues])[:-1])
    _refuse_zoneless(catalogues, zones)
    shift_m = _ZONE_WIDTH_M if len(zones) > 1 else 0.0
    positions_of_each = [_positions_m(catalogue, shift_m) for catalogue in catalogues]
    if (southern := _southern(catalogues, positions_of_each, zones)) is not None:
        for each, is_southern in zip(positions_of_each, southern, strict=True):
            each[is_southern, 1] -= SOUTHERN_ORIGIN_M
    return positions_of_each


@dataclass(frozen=True)
class Frame:
    """What the meters are that `positions_m` gives the images of one catalogue."""

    zone: int
    """UTM zone; 0 if it is unknown, or if there are several."""
    hemisphere: Literal["north", "south", "both"] | None
    """Hemisphere whose origin northings are counted from; with `both`, from the equator; None if it is unknown."""
    several_zones: bool = False
    """Whether 1000 km times its zone were added to the east of each image."""

    def columns(self, positions_m: np.ndarray) -> dict[str, np.ndarray]:
        """Convert positions in this frame, (N, 2), to columns of a catalogue.

        Returns:
            `east` and `north` in UTM meters and `zone`, with `latitude` and `longitude`, NaN where unknown.
        """
        east, north = np.array(positions_m, np.float64).reshape(-1, 2).T
        zone = np.full(len(east), self.zone, np.int8)
        if self.several_zones:
            zone = np.floor(east / _ZONE_WIDTH_M).astype(np.int8)
            east = east - _ZONE_WIDTH_M * zone
        southern = np.full(len(east), _HEMISPHERES.get(self.hemisphere, Hemisphere.UNKNOWN))
        if self.hemisphere == "both":
            southern = np.where(north < 0, Hemisphere.SOUTHERN, Hemisphere.NORTHERN)
            north = np.where(north < 0, north + SOUTHERN_ORIGIN_M, north)
        latitude, longitude = degrees_of_utm(east, north, zone, southern)
        return {"east": east, "north": north, "zone": zone, "latitude": latitude, "longitude": longitude}


def frame_of(catalogue: Catalogue) -> Frame:
    """Return the frame of the positions of a catalogue, see `positions_m`."""
    zones = _zones([catalogue])
    if len(zones) > 1 and (degrees := _degrees_together([catalogue])) is not None:
        latitude, longitude = middle_of(*degrees)
        return Frame(zone_of(latitude, longitude), "north" if latitude >= 0 else "south")
    hemisphere: Literal["north", "south", "both"] | None = None
    if (southern := _southern([catalogue], [_positions_m(catalogue, 0.0)], zones)) is not None:
        hemisphere = "both" if southern[0].any() else "north"
    else:
        origins = set(np.unique(hemispheres_of(catalogue)).tolist())
        hemisphere = _NAMES.get(origins.pop()) if len(origins) == 1 else None
    return Frame(min(zones) if len(zones) == 1 else 0, hemisphere, several_zones=len(zones) > 1)


def check_zones(*catalogues: Catalogue) -> None:
    """Check that `positions_m` can compute distances between all images; log it if zones count as far apart.

    Raises:
        ValueError: images without a zone although the others lie in several.
    """
    zones = _zones(catalogues)
    if len(zones) > 1 and _degrees_together(catalogues) is None:
        _refuse_zoneless(catalogues, zones)
        named = ", ".join(map(str, sorted(zones)))
        _LOGGER.info("images lie in UTM zones %s: those of two zones count as 1000 km apart and more", named)


def link_images(catalogue: Catalogue, folder: Path) -> None:
    """Create a folder of symbolic links to the images, named by the naming convention."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in _links(catalogue):
        (folder / name).symlink_to(target)


def links_to_images(catalogue: Catalogue, folder: Path) -> bool:
    """Return whether a folder holds the links to the images, for example of a process that was killed afterwards.

    Raises:
        FileExistsError: it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    beside = folder.iterdir() if folder.is_dir() else ()
    if dict(_links(catalogue)) != {path.name: path.readlink() if path.is_symlink() else None for path in beside}:
        raise FileExistsError(f"There is something in {folder} already: name another `out`.")
    return True


def _links(catalogue: Catalogue) -> Iterator[tuple[str, Path]]:
    """Yield the name of a link to each image by the naming convention, and the path of the image."""
    latitude, longitude = degrees_of(catalogue)
    fields = complete_fields(
        len(catalogue),
        east=catalogue.east,
        north=catalogue.north,
        zone=catalogue.zone,
        letter=band_letters(latitude),
        latitude=latitude,
        longitude=longitude,
        pano_id=np.array([f"{row:09d}" for row in range(len(catalogue))]),
        heading=catalogue.heading,
    )
    for row, name in enumerate(format_names(fields, extension="")):
        path = catalogue.path(row)
        if isinstance(path, RemotePath):
            raise ValueError(f"No link can lead to {path}: leave out `link`.")
        yield f"{name}{path.suffix}", path.resolve()


def _named(catalogue: Catalogue) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Parse band letters (N,), and latitude and longitude (2, N), from names that follow the convention.

    Unless all names start with @, all letters are "" and all degrees NaN. Degrees out of range count as absent, as does
    0, 0, which other programs write for unknown positions.
    """
    paths = catalogue.table["path"]
    degrees = np.full((2, len(paths)), np.nan)
    if not says_position(paths).all():
        return pa.chunked_array([pa.repeat("", len(paths))]).dictionary_encode(), degrees
    letters, unparsed = [], list[Unparsed]()
    for start in range(0, len(paths), _ROWS_AT_ONCE):
        fields = parse_columns(paths.slice(start, _ROWS_AT_ONCE), ("letter", "latitude", "longitude"), unparsed)
        latitude, longitude = fields["latitude"], fields["longitude"]
        is_place = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180) & ((latitude != 0) | (longitude != 0))
        degrees[:, start : start + len(latitude)] = np.where(is_place, [latitude, longitude], np.nan)
        letters.append(pa.array(fields["letter"], pa.large_string()).dictionary_encode())
    warn_of_unparsed(unparsed)
    return pa.chunked_array(letters, _LETTERS), degrees


def _zones(catalogues: Sequence[Catalogue]) -> set[int]:
    return set().union(*(pc.unique(catalogue.table["zone"]).to_pylist() for catalogue in catalogues)) - {0}


def _degrees_together(catalogues: Sequence[Catalogue]) -> np.ndarray | None:
    """Return latitude and longitude (2, N) of all catalogues; None if unknown or too wide for one zone."""
    degrees = [pair for catalogue in catalogues if (pair := catalogue.degrees) is not None]
    if len(degrees) < len(catalogues):
        return None
    together = np.concatenate(degrees, axis=1)
    return together if fits_one_zone(together[1]) else None


def _refuse_zoneless(catalogues: Sequence[Catalogue], zones: set[int]) -> None:
    for catalogue in catalogues if len(zones) > 1 else ():
        zoneless = catalogue.zone == 0
        if zoneless.any():
            zoneless &= np.isfinite(catalogue.east) & np.isfinite(catalogue.north)  # others have no distances
        if zoneless.any():
            raise ValueError(
                f"{zoneless.sum():,} of {len(catalogue):,} images of {catalogue.folder} have no UTM zone, such as "
                f"{catalogue.name(int(zoneless.argmax()))}, and the others that they are compared with lie in zones "
                f"{', '.join(map(str, sorted(zones)))}: nobody can tell how far apart they are. Name the zone of each "
                f"(@utm_east@utm_north@zone@letter@.jpg), or give latitudes and longitudes to `progeo dataset "
                f"import table`."
            )


def _positions_m(catalogue: Catalogue, zone_shift_m: float) -> np.ndarray:
    """Return east and north (N, 2), each stored contiguously for fast passes over millions."""
    positions = np.empty((2, len(catalogue)))
    for values, column in zip(positions, ("east", "north"), strict=True):
        np.concatenate([chunk.to_numpy() for chunk in catalogue.table[column].chunks], out=values)
    if zone_shift_m:
        positions[0] += zone_shift_m * catalogue.zone
    return positions.T


def _southern(
    catalogues: Sequence[Catalogue], positions: Sequence[np.ndarray], zones: Collection[int]
) -> list[np.ndarray] | None:
    """Return which northings are counted from the southern origin, (N,) of each catalogue, if both sides are compared.

    Returns:
        None if northings are compared as they are, because all images lie in one hemisphere, or one is not known.
    """
    if not zones:
        return None
    lowest = min(np.fmin.reduce(each[:, 1], initial=np.inf) for each in positions)
    highest = max(np.fmax.reduce(each[:, 1], initial=-np.inf) for each in positions)
    far_apart = highest - lowest > SOUTHERN_ORIGIN_M / 2
    if not far_apart and len(zones) == 1:
        return None  # without the time that names of millions of images take to parse
    origins = [hemispheres_of(catalogue) for catalogue in catalogues]
    pairs = zip(origins, positions, strict=True)
    known = set().union(*(np.unique(origin[np.isfinite(each[:, 1])]).tolist() for origin, each in pairs))
    if min(known, default=Hemisphere.UNKNOWN) < 0 or (len(known) < 2 and not far_apart):
        return None
    return [origin == Hemisphere.SOUTHERN for origin in origins]
