"""Conversion between latitude / longitude and UTM meters, in one zone for a whole set of images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import utm

_WIDEST_DEG = 6
_WIDEST_M = 1_500_000
"""Distance in meters from the central meridian of a zone, beyond which UTM coordinates are meaningless."""
METERS_PER_DEGREE = 111_200
_APART_M, _APART_TIMES = 100_000, 20
MAX_NUMBER = 10**8
"""Maximum of meters, in any frame, and of degrees, which may count turns; larger numbers are mistakes."""
SOUTHERN_ORIGIN_M = 10_000_000
"""False northing: added to northings south of the equator, so that none is negative."""
_LOWEST_DEG, _HIGHEST_DEG = -80, 84
_ROWS_AT_ONCE = 2**20
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
"""Letters of UTM's latitude bands: 8 degrees each from 80 S; X spans 12."""
_BAND_SLACK_M = 50_000
"""Distance by which images may reach into the next band, as one letter is often written for a whole city."""
_BAND_S = 2
"""Code for a letter S whose band fits the northing: north, unless another source says south."""
_LATITUDE_SLACK_M = 150_000
"""More than a northing changes through rounded degrees and the distance from the central meridian."""


class Hemisphere(IntEnum):
    """The hemisphere whose origin a UTM northing is counted from."""

    NORTHERN = 0
    SOUTHERN = 1
    UNKNOWN = -1
    CONTRADICTED = -2
    """The sources contradict the northing or each other."""


@dataclass(frozen=True)
class Positions:
    """UTM coordinates of N images in one zone."""

    east: np.ndarray
    """Meters, float64 (N,), NaN where degrees are absent."""
    north: np.ndarray
    """Meters, float64 (N,), NaN where degrees are absent."""
    zone: int
    """UTM zone of the median position, 1 to 60; all images are measured in it."""


def map_link(latitude: float, longitude: float, *, zoom: int = 19) -> str:
    """Return the URL of a street map of OpenStreetMap with a marker; `zoom` 19 shows houses, 12 a city."""
    place = f"{latitude:.5f}", f"{longitude:.5f}"
    return f"https://www.openstreetmap.org/?mlat={place[0]}&mlon={place[1]}#map={zoom}/{'/'.join(place)}"


def _numbered(row: int) -> str:
    return f"Image {row + 1}"


def project(latitude: np.ndarray, longitude: np.ndarray, *, name: Callable[[int], str] = _numbered) -> Positions:
    """Project WGS 84 degrees to UTM, all in the zone of the median position, even across a zone border or the equator.

    Args:
        latitude: degrees north, -80 to 84, (N,), NaN where absent.
        longitude: degrees east, -180 to 180, (N,), NaN where absent.
        name: returns the name of the image in a row, for error messages.

    Raises:
        ValueError: degrees are out of range or all absent, or images are too far apart for one zone.
    """
    check_degrees(latitude, longitude, name=name)
    known = np.isfinite(latitude) & np.isfinite(longitude)
    if not known.any():
        raise ValueError(f"None of {len(known)} images has a latitude and a longitude.")
    middle_latitude, middle_longitude = middle_of(latitude[known], longitude[known])
    far = known & _is_far(longitude, middle_longitude)
    if far.any():
        row = int(far.argmax())
        raise ValueError(
            f"{name(row)} is at longitude {longitude[row]}, the middle of all at {middle_longitude:.5f}: more than "
            f"{_WIDEST_DEG} degrees apart, no UTM zone fits both. Make one set of each city."
        )
    zone = zone_of(middle_latitude, middle_longitude)
    east, north = np.full((2, len(known)), np.nan)
    for rows in slices(len(known)):
        here = known[rows]
        if here.any():
            east[rows][here], north[rows][here], _, _ = utm.from_latlon(
                latitude[rows][here],
                longitude[rows][here],
                force_zone_number=zone,
                force_northern=middle_latitude >= 0,
            )
    return Positions(east, north, zone)


def zone_of(latitude: float, longitude: float) -> int:
    """Return the UTM zone of a position in degrees."""
    return utm.latlon_to_zone_number(latitude, longitude)


def check_degrees(latitude: np.ndarray, longitude: np.ndarray, *, name: Callable[[int], str] = _numbered) -> None:
    """Check that degrees are in range for `project`; NaN passes.

    Raises:
        ValueError: degrees are out of range; the message names the first image.
    """
    limits = (("latitude", latitude, _LOWEST_DEG, _HIGHEST_DEG), ("longitude", longitude, -180, 180))
    for what, values, low, high in limits:
        wrong = (values < low) | (values > high)
        if wrong.any():
            row = int(wrong.argmax())
            is_swapped = abs(latitude[row]) <= 180 and _LOWEST_DEG <= longitude[row] <= _HIGHEST_DEG
            raise ValueError(
                f"{name(row)}: its {what} must be from {low} to {high} degrees, got {values[row]}. "
                + (
                    "Are latitude and longitude the right way round?"
                    if is_swapped
                    else "Give degrees of WGS 84, and none where the position is unknown."
                )
            )


def check_numbers(name: Callable[[int], str], **columns: np.ndarray) -> None:
    """Check that meters or degrees, (N,) each, are at most `MAX_NUMBER` in either direction; NaN passes.

    Raises:
        ValueError: they are not; the message has the name of the first such image and of the column.
    """
    for column, values in columns.items():
        wrong = np.abs(values) > MAX_NUMBER
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{name(row)}: its {column} must be from -10^8 to 10^8, got {values[row]}.")


def fits_one_zone(longitude: np.ndarray) -> bool:
    """Return whether `project` can measure all images in one zone."""
    return not _is_far(longitude, _middle(longitude)).any()


def few_that_fit_no_zone(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Find the few images that keep `project` from measuring the others, bool (N,); none if they are many.

    Images at 0, 0, which stands for an unknown position, count however many they are.
    """
    known = np.isfinite(latitude) & np.isfinite(longitude)
    at_zero = (latitude == 0) & (longitude == 0)
    rest = known & ~at_zero
    if not rest.any():
        return rest
    far = known & _is_far(longitude, _middle(longitude[rest]))
    far |= known & ((latitude < _LOWEST_DEG) | (latitude > _HIGHEST_DEG))
    return far & (at_zero | _are_few(int(far[rest].sum()), int(rest.sum())))


def middle_of(latitude: np.ndarray, longitude: np.ndarray) -> tuple[float, float]:
    """Compute the median latitude and longitude, correct across the 180 degree meridian."""
    return float(np.median(latitude)), _middle(longitude)


def offsets_m(degrees: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    """Approximate the offsets (N, 2) in meters east and north of `middle`, for latitudes and longitudes (2, N)."""
    latitude, longitude = degrees
    east = _turned(longitude - middle[1]) * np.cos(np.radians(middle[0]))
    return np.stack([east, latitude - middle[0]], axis=1) * METERS_PER_DEGREE


def distances_m(degrees: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    """Approximate the distances (N,) in meters from `middle`, for latitudes and longitudes (2, N)."""
    distances = np.empty(degrees.shape[1])
    for rows in slices(len(distances)):
        distances[rows] = np.linalg.norm(offsets_m(degrees[:, rows], middle), axis=1)
    return distances


def apart_from(distances_m: np.ndarray) -> float:
    """Compute the distance in meters beyond which an image is an outlier, given all distances to the median (N,).

    It is the larger of 100 km and 20 times the median, so that neither a country nor a suburb has outliers.
    """
    return max(_APART_M, _APART_TIMES * float(np.median(distances_m)))


def outliers(distances_m: np.ndarray) -> np.ndarray:
    """Find the images far from all others, bool (N,); none if they are more than a few, such as a second city."""
    far = distances_m > apart_from(distances_m)
    return far & _are_few(int(far.sum()), len(far))


def swapped(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Find the images, bool (N,), that are outliers as given but not with latitude and longitude swapped.

    Args:
        latitude, longitude: degrees in range, NaN where absent, (N,).
    """
    rows = np.zeros(len(latitude), bool)
    known = np.isfinite(latitude) & np.isfinite(longitude)
    if known.any():
        degrees = np.stack([latitude[known], longitude[known]])
        middle = middle_of(*degrees)
        distances, other_way_round = (distances_m(each, middle) for each in (degrees, degrees[::-1]))
        limit = apart_from(distances)
        rows[known] = (distances > limit) & (other_way_round <= limit)
    return rows


def zones_apart(zone: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Compute how many zones lie between UTM zones, 1 to 60, and longitudes in degrees, (N,), NaN where absent."""
    return np.abs((zone - np.floor((longitude + 180) / 6) - 1 + 30) % 60 - 30)


def hemispheres(
    north: np.ndarray,
    *,
    letters: Sequence[np.ndarray | pa.Array | pa.ChunkedArray] = (),
    latitude: np.ndarray | None = None,
) -> np.ndarray:
    """Determine the hemisphere whose origin each UTM northing is counted from.

    A letter C to X, in either case, is a latitude band. If the band contradicts the northing, S means south and N means
    north; if that happens more often in a column than a few mistakes would explain, its S and N always mean south and
    north. Texts other than letters and words such as `south` are ignored. Without any such information, a northing is
    decided only if, counted from the other origin, it would lie beyond 84 N or 80 S.

    Args:
        north: meters, (N,).
        letters: columns of band letters and hemisphere words, (N,) each.
        latitude: degrees, NaN where unknown, (N,).

    Returns:
        Values of `Hemisphere`, int8 (N,).
    """
    votes = [_from_letters(north, texts) for texts in letters]
    if latitude is not None:
        votes.append(_from_latitude(north, latitude))
    is_north, is_south, contradicted, is_band_s = (
        np.any([each == value for each in votes], axis=0) if votes else np.zeros(len(north), bool)
        for value in (Hemisphere.NORTHERN, Hemisphere.SOUTHERN, Hemisphere.CONTRADICTED, _BAND_S)
    )
    is_north |= ~is_south & is_band_s
    lowest, highest = northings_of(np.array([_LOWEST_DEG, _HIGHEST_DEG], float))
    is_north |= ~is_south & (north >= lowest) & (north < SOUTHERN_ORIGIN_M + lowest)
    is_south |= ~is_north & (north > highest) & (north <= SOUTHERN_ORIGIN_M + _BAND_SLACK_M)
    conditions = [contradicted | (is_north & is_south), is_north, is_south]
    values = [Hemisphere.CONTRADICTED, Hemisphere.NORTHERN, Hemisphere.SOUTHERN]
    return np.select(conditions, values, Hemisphere.UNKNOWN).astype(np.int8)


def degrees_of_utm(east: np.ndarray, north: np.ndarray, zone: np.ndarray, southern: np.ndarray) -> np.ndarray:
    """Convert UTM to latitude and longitude (2, N), NaN where zone or hemisphere is unknown or east is implausible.

    Args:
        east, north: meters, (N,).
        zone: 1 to 60, 0 where unknown, (N,).
        southern: values of `Hemisphere`, (N,).
    """
    degrees = np.empty((2, len(east)))
    for rows in slices(len(east)):
        degrees[:, rows] = _few_degrees_of_utm(east[rows], north[rows], zone[rows], southern[rows])
    return degrees


def _few_degrees_of_utm(east: np.ndarray, north: np.ndarray, zone: np.ndarray, southern: np.ndarray) -> np.ndarray:
    degrees = np.full((2, len(east)), np.nan)
    known = (zone > 0) & (southern >= 0) & (np.abs(east - 500_000) < _WIDEST_M)
    for number, is_south in {*zip(zone[known].tolist(), southern[known].tolist(), strict=True)}:
        here = (zone == number) & (southern == is_south)
        degrees[:, here] = utm.to_latlon(east[here], north[here], number, northern=not is_south, strict=False)
    return degrees


def band_letters(latitude: np.ndarray) -> np.ndarray:
    """Return the letter of each image's UTM latitude band, str (N,), "" if the latitude is absent or out of range."""
    known = (latitude >= _LOWEST_DEG) & (latitude <= _HIGHEST_DEG)
    bands = np.minimum((np.where(known, latitude, 0) - _LOWEST_DEG) // 8, len(_BANDS) - 1).astype(int)
    return np.where(known, np.array(list(_BANDS))[bands], "")


def northings_of(latitude: np.ndarray) -> np.ndarray:
    """Compute the UTM northings on the central meridian, in meters from the equator, negative south of it."""
    zeros = np.zeros(latitude.shape)
    if not latitude.size:  # utm does not accept an empty array
        return zeros
    return utm.from_latlon(latitude, zeros + 3, force_zone_number=31, force_northern=True)[1]


@cache
def _northings_of_words() -> Mapping[str, tuple[tuple[float, float], ...]]:
    """Return the northing ranges of each letter or word, in meters from the equator, the most likely first."""
    edges = northings_of(np.array([*range(_LOWEST_DEG, 73, 8), _HIGHEST_DEG], float)).tolist()
    ranges: dict[str, tuple[tuple[float, float], ...]] = {
        letter.lower(): ((low - _BAND_SLACK_M, high + _BAND_SLACK_M),)
        for letter, low, high in zip(_BANDS, edges[:-1], edges[1:], strict=True)
    }
    halves = {"north": (-_BAND_SLACK_M, edges[-1]), "south": (edges[0], _BAND_SLACK_M)}
    for word, half in halves.items():
        ranges |= {word: (half,), f"{word}ern": (half,), word[0]: (*ranges[word[0]], half)}
    return ranges


def _from_letters(north: np.ndarray, texts: np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    if not isinstance(texts, (pa.Array, pa.ChunkedArray)):
        texts = pa.array(np.asarray(texts, object), pa.large_string())  # Arrow 16 does not convert NumPy text arrays
    ranges = _northings_of_words()
    codes = _codes(texts, list(ranges))
    found = np.full(len(north), Hemisphere.UNKNOWN, np.int8)
    for code in np.unique(codes[codes >= 0]).tolist():
        here = codes == code
        found[here] = _fitting(north[here], list(ranges.values())[code])
    is_s = codes == list(ranges).index("s")
    found[is_s & (found == Hemisphere.NORTHERN)] = Hemisphere.SOUTHERN if _are_halves(north, codes) else _BAND_S
    return found


def _codes(texts: pa.Array | pa.ChunkedArray, words: list[str]) -> np.ndarray:
    """Return which of the words each text is in any case, int32 (N,), -1 if none; each different text is read once."""
    if not len(texts):
        return np.empty(0, np.int32)
    different = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    if isinstance(different, pa.ChunkedArray):
        different = different.unify_dictionaries().combine_chunks()
    values = pc.utf8_lower(pc.utf8_trim_whitespace(different.dictionary.cast(pa.large_string())))
    codes = pc.index_in(values, value_set=pa.array(words, pa.large_string())).fill_null(-1).to_numpy()
    return np.append(codes, np.int32(-1))[different.indices.fill_null(len(codes)).to_numpy()]


def _are_halves(north: np.ndarray, codes: np.ndarray) -> bool:
    """Return whether N and S in a column mean north and south, because as bands they contradict many northings."""
    outside = total = 0
    for letter in "ns":
        meters = north[codes == list(_northings_of_words()).index(letter)]
        meters = meters[np.isfinite(meters)]
        outside += int((_fitting(meters, _northings_of_words()[letter][:1]) == Hemisphere.CONTRADICTED).sum())
        total += len(meters)
    return not _are_few(outside, total)


def _from_latitude(north: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    known = np.isfinite(latitude)
    middle = np.empty(len(latitude))
    for rows in slices(len(latitude)):
        middle[rows] = northings_of(np.clip(np.where(known[rows], latitude[rows], 0.0), _LOWEST_DEG, _HIGHEST_DEG))
    found = _fitting(north, [(middle - _LATITUDE_SLACK_M, middle + _LATITUDE_SLACK_M)])
    return np.where(known, found, Hemisphere.UNKNOWN)


def _fitting(north: np.ndarray, ranges: Sequence[tuple[np.ndarray | float, np.ndarray | float]]) -> np.ndarray:
    """Find the origin that puts each northing into one of the ranges; earlier ranges, then the north, win."""
    found = np.full(len(north), Hemisphere.CONTRADICTED, np.int8)
    for low, high in reversed(ranges):
        for value, meters in ((Hemisphere.SOUTHERN, north - SOUTHERN_ORIGIN_M), (Hemisphere.NORTHERN, north)):
            found[(low <= meters) & (meters <= high)] = value
    return found


def _are_few(count: int, total: int) -> bool:
    """Return whether a count is small enough for mistakes: at most 1 %, or for small sets 10 % but no more than 3."""
    return count <= max(total / 100, min(3, total / 10))


def slices(count: int) -> Iterator[slice]:
    """Divide rows into slices whose intermediate values take little memory."""
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, count, _ROWS_AT_ONCE))


def _middle(longitude: np.ndarray) -> float:
    around = longitude[0] + _turned(longitude - longitude[0])  # correct across the 180 degree meridian
    return float(_turned(np.median(around)))


def _is_far(longitude: np.ndarray, middle: float) -> np.ndarray:
    return np.abs(_turned(longitude - middle)) > _WIDEST_DEG


def _turned(degrees: np.ndarray) -> np.ndarray:
    """Wrap degrees to -180..180."""
    return (degrees + 180) % 360 - 180
