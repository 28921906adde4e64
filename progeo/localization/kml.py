"""Write localizations as KML 2.2, for Google Earth and GIS: placemarks of photos, cells of classes, and a track."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from progeo.files import write_xml
from progeo.localization.exif import taken_at
from progeo.localization.localizations import Localization, Match
from progeo.pages.page import shown_path

_NAMESPACE = "http://www.opengis.net/kml/2.2"
_CELL_COLOR = "4d0080ff"
"""Alpha, blue, green and red."""


def write_kml(path: Path, results: Sequence[Localization], *, show_paths: bool = False) -> None:
    """Write each photo whose position is known as a placemark with its data, and the cells of its classes as polygons.

    The line of a sequence has a gap where the track is lost.
    """
    root = Element("kml", xmlns=_NAMESPACE)
    document = SubElement(root, "Document")
    SubElement(document, "name").text = "Localizations"
    style = SubElement(document, "Style", id="cell")
    SubElement(SubElement(style, "PolyStyle"), "color").text = _CELL_COLOR
    for result in results:
        if result.can_be_mapped:
            document.append(_placemark(result, show_paths))
            document.extend(_cells(result, show_paths))
    if any(result.frame is not None for result in results):
        document.append(_track(results))
    write_xml(path, root)


def _placemark(result: Localization, show_paths: bool) -> Element:
    placemark = Element("Placemark")
    SubElement(placemark, "name").text = shown_path(result.query, show_paths)
    if (time := taken_at(Path(result.query))) is not None:  # KML takes times without a time zone too
        SubElement(SubElement(placemark, "TimeStamp"), "when").text = time.isoformat()
    values = {
        "confidence": result.confidence,
        "radius_m": result.radius_m,
        "match": shown_path(result.matches[0].path, show_paths),
        "distance": result.matches[0].distance,
        "heading_deg": result.matches[0].heading_deg,
    }
    placemark.append(_data(values))
    position = _coordinates([(result.matches[0].longitude, result.matches[0].latitude)])
    SubElement(SubElement(placemark, "Point"), "coordinates").text = position
    return placemark


def _cells(result: Localization, show_paths: bool) -> Iterable[Element]:
    for rank, match in enumerate(result.matches, 1):
        if match.corners is None:
            continue
        placemark = Element("Placemark")
        SubElement(placemark, "name").text = f"{shown_path(result.query, show_paths)}: {match.path}"
        SubElement(placemark, "styleUrl").text = "#cell"
        placemark.append(_data({"rank": rank, "probability": match.probability}))
        boundary = SubElement(SubElement(placemark, "Polygon"), "outerBoundaryIs")
        ring = SubElement(SubElement(boundary, "LinearRing"), "coordinates")
        ring.text = _coordinates([*match.corners, match.corners[0]])
        yield placemark


def _track(results: Sequence[Localization]) -> Element:
    placemark = Element("Placemark")
    SubElement(placemark, "name").text = "Track"
    lines = SubElement(placemark, "MultiGeometry")
    for can_be_mapped, part in groupby(results, key=lambda result: result.can_be_mapped):
        matches: list[Match] = [result.matches[0] for result in part] if can_be_mapped else []
        if len(matches) > 1:  # a line has two points at least
            coordinates = SubElement(SubElement(lines, "LineString"), "coordinates")
            coordinates.text = _coordinates([(match.longitude, match.latitude) for match in matches])
    return placemark


def _data(values: Mapping[str, object]) -> Element:
    """Return values for the balloon of a placemark; those that are None are left out."""
    data = Element("ExtendedData")
    for name, value in values.items():
        if value is not None:
            SubElement(SubElement(data, "Data", name=name), "value").text = str(value)
    return data


def _coordinates(positions: Iterable[tuple[float | None, float | None]]) -> str:
    """Format pairs of longitude and latitude."""
    return " ".join(f"{longitude:.7f},{latitude:.7f}" for longitude, latitude in positions)
