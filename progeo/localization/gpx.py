"""Write localizations as GPX 1.1, for GPS devices and maps: waypoints of photos, and the track of a sequence."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from progeo import __version__
from progeo.files import write_xml
from progeo.localization.exif import taken_at
from progeo.localization.localizations import Localization
from progeo.pages.page import shown_path

_NAMESPACE = "http://www.topografix.com/GPX/1/1"


def write_gpx(path: Path, results: Sequence[Localization], *, show_paths: bool = False) -> None:
    """Write the photos whose positions are known as waypoints; a sequence becomes a track, with a gap where it is lost.

    A time is written only where the photo's EXIF gives its time zone, as GPX takes UTC; other times are in the
    description.
    """
    root = Element("gpx", xmlns=_NAMESPACE, version="1.1", creator=f"progeo {__version__}")
    if any(result.frame is not None for result in results):
        track = SubElement(root, "trk")
        for can_be_mapped, part in groupby(results, key=lambda result: result.can_be_mapped):
            if can_be_mapped:
                segment = SubElement(track, "trkseg")
                segment.extend(_point("trkpt", result, show_paths) for result in part)
    else:
        root.extend(_point("wpt", result, show_paths) for result in results if result.can_be_mapped)
    write_xml(path, root)


def _point(tag: str, result: Localization, show_paths: bool) -> Element:
    assert result.longitude is not None
    longitude = round(result.longitude, 7)
    longitude -= 360 * (longitude >= 180)  # GPX takes -180 to below 180
    point = Element(tag, lat=f"{result.latitude:.7f}", lon=f"{longitude:.7f}")
    time = taken_at(Path(result.query))
    if time is not None and time.tzinfo is not None:
        SubElement(point, "time").text = f"{time.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"
    SubElement(point, "name").text = shown_path(result.query, show_paths)
    SubElement(point, "desc").text = ", ".join(_description(result, time))
    SubElement(point, "src").text = "visual localization by progeo"
    return point


def _description(result: Localization, time: datetime | None) -> Iterator[str]:
    if result.confidence is None:
        yield "confidence unknown"
    else:
        yield f"within {result.radius_m:g} m with probability {result.confidence:.2f}"
    if time is not None and time.tzinfo is None:
        yield f"taken {time:%Y-%m-%d %H:%M:%S} in an unknown time zone"
