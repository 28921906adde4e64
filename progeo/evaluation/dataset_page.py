"""Write the HTML page of a data set check: the images that something is wrong with, a map, and charts of classes.

The page has a bounded size whatever the number of images.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.evaluation.class_map import ClassMap, class_map
from progeo.pages.charts import Bars
from progeo.pages.gallery import Gallery, Item, Measure, Photos, Row, Strip
from progeo.pages.maps import Detail, Map, MapFrame, Points, map_frame
from progeo.pages.page import shown_path, write_page
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Partition
from progeo.places.coordinates import map_link
from progeo.remote_files import path_in

KINDS = ("unreadable", "tiny", "duplicates", "misplaced")
_WITHOUT_POSITIVE = "without a positive"
_MAX_ROWS, _MAX_PICTURES = 200, 60
"""Maximum number of rows of each kind of problem in each set, and of those with pictures."""
_MAX_COPIES = 6
"""Maximum number of copies shown of one image."""
_MAX_BARS = 30
_MAX_SIZES = 3


@dataclass(frozen=True)
class CheckedSet:
    """The images of a set, and which of them lie elsewhere than the others."""

    name: str
    catalogue: Catalogue
    elsewhere: np.ndarray
    """Rows, int64: one of them on the map would shrink the city to a dot."""


@dataclass(frozen=True)
class _Finding:
    """Something that is wrong with an image, or with several."""

    kind: str
    of: CheckedSet
    name: str
    """Path of the image in its set."""
    note: str
    title: str = ""
    """What the other images are."""
    others: tuple[tuple[CheckedSet, str, float | None], ...] = ()
    """Set and path of each other image, and its distance in meters."""


def write_dataset_page(
    path: Path,
    report: Mapping[str, Any],
    sets: Sequence[CheckedSet],
    *,
    partition: Partition | None = None,
    num_groups: int | None = None,
    show_paths: bool = False,
) -> None:
    """Write the page.

    Args:
        report: the content of `check.json`.
        sets: training images, or the database and queries.
        partition: classes of training images; None draws none.
        num_groups: number of groups that training uses; None uses all.
        show_paths: whether the page shows absolute paths.
    """
    by_kind = _by_set_and_kind([*_findings_of_sets(report, sets), *_without_positive(report, sets)])
    shown = [finding for some in by_kind.values() for finding in some[:_MAX_ROWS]]
    pictured = {id(finding) for some in by_kind.values() for finding in some[:_MAX_PICTURES]}
    classes = report.get("classes") or {}
    folder = str(report["folder"])
    catalogues = [each.catalogue for each in sets]
    in_degrees = all(found["map_link"] for found in report["sets"].values())  # of most images, if not of all
    frame = map_frame(*catalogues, great_circle=in_degrees)
    places = _Places(sets, frame, shown)
    drawn = None if partition is None else class_map(catalogues[0], partition, frame, num_groups=num_groups)
    write_page(
        path,
        "check.html",
        title=f"Images of {shown_path(folder, show_paths)}",
        show_paths=show_paths,
        gallery=_gallery(shown, pictured, places) if shown else None,
        map=_map(sets, places, shown, drawn),
        report=report,
        counts={kind: sum(len(some) for (_, its), some in by_kind.items() if its == kind) for kind in _kinds(report)},
        hidden=_hidden(by_kind),
        samples={name: said for name, found in report["sets"].items() if (said := format_sample(found))},
        num_pictures=_MAX_PICTURES if any(len(some) > _MAX_PICTURES for some in by_kind.values()) else None,
        sizes={name: _sizes(found["sizes"]) for name, found in report["sets"].items()},
        refusal=classes.get("refused", "").replace(folder, shown_path(folder, show_paths)),
        suggestion=format_cells(classes["suggested"]) if "suggested" in classes else "",
        class_map=drawn,
        charts=[*_images_per_class(classes), *_other_cells(classes)],
    )


def format_finding(item: Any) -> str:
    """Format one finding: a path, a path and its reason, or paths with the same content."""
    return item if isinstance(item, str) else ": ".join(item) if isinstance(item, tuple) else " = ".join(item)


def format_sample(found: Mapping[str, Any]) -> str:
    """Say which images of a set were not read, and what that tells about all of them; "" if all were read."""
    if not found.get("estimates"):
        return ""
    rates = [
        f"{each['percent']:.3g} % of these are {kind}, of all {each['low']:.2g} to {each['high']:.2g} % (95 % interval)"
        for kind, each in found["estimates"].items()
    ]
    unread = found["images"] - found["read"]
    return f"{found['read']:,} images were read, {unread:,} were not: {'; '.join(rates)}; copies of these images only."


def format_cells(cells: Mapping[str, Any]) -> str:
    """Format cells as command-line options."""
    return (
        f"--cells.cell_side_m {cells['cell_side_m']} --cells.heading_bin_deg {cells['heading_bin_deg']} "
        f"--cells.groups_per_heading 1"
    )


def _kinds(report: Mapping[str, Any]) -> tuple[str, ...]:
    return (*KINDS, _WITHOUT_POSITIVE) if "queries_without_positive" in report else KINDS


def _by_set_and_kind(findings: Sequence[_Finding]) -> dict[tuple[str, str], list[_Finding]]:
    found: dict[tuple[str, str], list[_Finding]] = {}
    for finding in findings:
        found.setdefault((finding.of.name, finding.kind), []).append(finding)
    return found


def _hidden(by_kind: Mapping[tuple[str, str], Sequence[_Finding]]) -> list[str]:
    """Say how many findings of each kind are not on the page."""
    return [
        f"{len(some) - _MAX_ROWS:,} more of {name} that are {kind}"
        for (name, kind), some in by_kind.items()
        if len(some) > _MAX_ROWS
    ]


def _sizes(sizes: Mapping[str, int]) -> str:
    """Format the most frequent sizes of images."""
    shown = ", ".join(f"{size} ({count:,})" for size, count in list(sizes.items())[:_MAX_SIZES])
    return f"{shown} and {len(sizes) - _MAX_SIZES} more" if len(sizes) > _MAX_SIZES else shown


def _findings_of_sets(report: Mapping[str, Any], sets: Sequence[CheckedSet]) -> Iterator[_Finding]:
    for each in sets:
        found = report["sets"][each.name]
        for name, reason in found["unreadable"].items():
            yield _Finding("unreadable", each, name, reason)
        for name in found["tiny"]:
            yield _Finding("tiny", each, name, f"{found['tiny_sizes'][name]} pixels")
        for names in found["duplicates"]:
            copies = tuple((each, name, None) for name in names[1:])
            yield _Finding("duplicates", each, names[0], f"{len(names):,} files are the same", "Copies", copies)
        for name, reason in found["misplaced"].items():
            yield _Finding("misplaced", each, name, reason)


def _without_positive(report: Mapping[str, Any], sets: Sequence[CheckedSet]) -> Iterator[_Finding]:
    for found in report.get("nearest_to_queries_without_positive", ()):
        database, queries = sets
        nearest = () if found["nearest"] is None else ((database, found["nearest"], found["distance_m"]),)
        note = "" if nearest else "Its position is unknown."
        yield _Finding(_WITHOUT_POSITIVE, queries, found["query"], note, "Nearest database image", nearest)


class _Places:
    """Where the images of sets, and those of findings, lie on the map."""

    def __init__(self, sets: Sequence[CheckedSet], frame: MapFrame, findings: Sequence[_Finding]) -> None:
        self.unit = frame.unit
        self.around = {
            each.name: np.delete(positions, each.elsewhere, axis=0)
            for each, positions in zip(sets, frame.positions, strict=True)
        }
        """Positions of each set without those elsewhere, (N, 2)."""
        self._found: dict[tuple[str, str], np.ndarray] = {}
        self._elsewhere: set[tuple[str, str]] = set()
        named = [pair for each in findings for pair in ((each.of, each.name), *(other[:2] for other in each.others))]
        for each, positions in zip(sets, frame.positions, strict=True):
            paths = each.catalogue.table["path"]
            wanted = pa.array({name for of, name in named if of is each}, paths.type)
            for row in np.flatnonzero(pc.is_in(paths, value_set=wanted).to_numpy()).tolist():
                self._found[each.name, each.catalogue.name(row)] = positions[row]
            self._elsewhere |= {(each.name, each.catalogue.name(row)) for row in each.elsewhere.tolist()}

    def of(self, finding: _Finding) -> np.ndarray:
        """Return the position of the image of a finding, (2,), NaN if it is unknown."""
        return self._found[finding.of.name, finding.name]

    def target(self, finding: _Finding) -> np.ndarray:
        """Return the position of the first other image of a finding, (2,), NaN if there is none."""
        if not finding.others:
            return np.full(2, np.nan)
        of, name, _ = finding.others[0]
        return self._found[of.name, name]

    def is_elsewhere(self, finding: _Finding) -> bool:
        """Return whether the image of a finding lies elsewhere than the others of its set."""
        return (finding.of.name, finding.name) in self._elsewhere

    def link(self, finding: _Finding) -> str:
        """Return the address of a street map of the image of a finding; empty if its degrees are unknown."""
        place = self.of(finding)
        return map_link(*place.tolist()) if self.unit == "degrees" and np.isfinite(place).all() else ""


def _gallery(findings: Sequence[_Finding], pictured: set[int], places: _Places) -> Gallery:
    photos = Photos()
    rows = []
    for key, finding in enumerate(findings):
        embedded = id(finding) in pictured

        def add(of: CheckedSet, name: str, embedded: bool = embedded) -> int:
            return photos.add(name, path_in(of.catalogue.folder, name), embedded=embedded)

        items = [Item(add(of, name), "", (meters,)) for of, name, meters in finding.others[:_MAX_COPIES]]
        title = finding.title
        if len(items) < len(finding.others):
            title = f"{title}, the first {len(items)} of {len(finding.others):,}"
        rows.append(
            Row(
                key,
                add(finding.of, finding.name),
                [Strip(title, items)] if items else [],
                facets={"problem": finding.kind, "set": finding.of.name},
                note=finding.note,
                link=places.link(finding),
            )
        )
    facets = {
        "problem": list(dict.fromkeys(finding.kind for finding in findings)),
        "set": list(dict.fromkeys(finding.of.name for finding in findings)),
    }
    filters = {name: values for name, values in facets.items() if len(values) > 1}
    return Gallery(photos, rows, [Measure("distance_m", "meters")], filters, noun="finding", plural="findings")


def _map(
    sets: Sequence[CheckedSet], places: _Places, findings: Sequence[_Finding], classes: ClassMap | None
) -> Map | None:
    if not any(np.isfinite(each).all(axis=1).any() for each in places.around.values()):
        return None
    first, *others = sets
    points = [Points(each.name, "query", places.around[each.name]) for each in others]
    details: dict[int, Detail] = {}
    for kind in dict.fromkeys(finding.kind for finding in findings):
        some = {key: finding for key, finding in enumerate(findings) if finding.kind == kind}
        near = {key: finding for key, finding in some.items() if not places.is_elsewhere(finding)}
        if near:
            points.append(_problems(kind, near, places, has_targets=kind == _WITHOUT_POSITIVE))
        details |= {
            key: Detail([_problems(kind, {key: finding}, places)]) for key, finding in some.items() if key not in near
        }
    layers = () if classes is None else classes.layers
    return Map(places.unit, places.around[first.name], first.name, points, layers, details)


def _problems(kind: str, findings: Mapping[int, _Finding], places: _Places, *, has_targets: bool = False) -> Points:
    """Draw findings by key, each with an arrow to its first other image if `has_targets`."""
    return Points(
        kind,
        "problem",
        np.array([places.of(finding) for finding in findings.values()]).reshape(-1, 2),
        list(findings),
        [finding.name for finding in findings.values()],
        np.array([places.target(finding) for finding in findings.values()]).reshape(-1, 2) if has_targets else None,
    )


def _images_per_class(classes: Mapping[str, Any]) -> list[Bars]:
    by_size = {int(size): count for size, count in classes.get("classes_with_so_many_images", {}).items()}
    if not by_size:
        return []
    first, last = min(by_size), max(by_size)
    width = math.ceil((last - first + 1) / _MAX_BARS)
    counts = [0] * math.ceil((last - first + 1) / width)
    for size, count in by_size.items():
        counts[(size - first) // width] += count
    starts = range(first, last + 1, width)
    labels = [f"{start}" if width == 1 else f"{start}-{start + width - 1}" for start in starts]
    return [Bars("Images of a class", "images", "classes", labels, {"": counts})]


def _other_cells(classes: Mapping[str, Any]) -> list[Bars]:
    """Draw the numbers of classes and of their images by cell side, one series for each heading bin."""
    cells = [classes, *classes["with_other_cells"]] if classes.get("with_other_cells") else []
    cells = [each for each in cells if "refused" not in each]
    sides = sorted({each["cell_side_m"] for each in cells})
    bins = sorted({each["heading_bin_deg"] for each in cells})
    found = {(each["cell_side_m"], each["heading_bin_deg"]): each for each in cells}
    return [
        Bars(
            title,
            "cell side",
            name,
            [f"{side} m" for side in sides],
            {
                f"heading bins of {bin_deg} degrees" if bin_deg < 360 else "any heading": [
                    found.get((side, bin_deg), {}).get(name, math.nan) for side in sides
                ]
                for bin_deg in bins
            },
        )
        for title, name in (("Classes with other cells", "classes"), ("Images of those classes", "images"))
        if cells
    ]
