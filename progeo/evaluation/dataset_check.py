"""Check a data set before training or evaluation."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import utm
from scipy.spatial import cKDTree

from progeo.data.inspection import inspect_images
from progeo.evaluation.dataset_page import (
    KINDS,
    CheckedSet,
    format_cells,
    format_finding,
    format_sample,
    write_dataset_page,
)
from progeo.evaluation.metrics import wilson_interval
from progeo.places.catalogue import Catalogue, index_file, read_catalogue
from progeo.places.cells import NoClass, Partition, build_partition
from progeo.places.coordinates import Hemisphere
from progeo.places.distances import Distances, distances_between, is_wide
from progeo.places.extent import Extent, extent_of
from progeo.places.filename import parse_columns
from progeo.places.geographic import check_zones, hemispheres_of
from progeo.places.options import CellOptions
from progeo.places.positives import find_positives

_EAST_M, _NORTH_M = (100_000, 900_000), (0, 10_000_000)
"""Valid ranges of UTM coordinates."""
_TOO_FAR_M = 100
_FEW_CLASSES = 100
_SEED = 0
_WIDER, _BINS = (1, 1.5, 2, 3, 5, 10), (30, 90, 360)


@dataclass
class Findings:
    """Problems and statistics of one catalogue, with images named by path."""

    images: int
    read: int = 0
    """Number of images that were read."""
    estimates: dict[str, dict[str, float]] = field(default_factory=dict)
    """If only a sample was read, the percentage of unreadable and tiny images in it, and the `low` and `high` bounds of
    the 95 % interval of that of all images."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Reason by path."""
    tiny: list[str] = field(default_factory=list)
    tiny_sizes: dict[str, str] = field(default_factory=dict)
    """`height x width` of each tiny image by path."""
    duplicates: list[list[str]] = field(default_factory=list)
    """Groups of paths with the same content, among the images that were read."""
    misplaced: dict[str, str] = field(default_factory=dict)
    """Reason by path."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of images of each `height x width`, among those that were read."""
    where: str = ""
    """Center and extent without the images that lie elsewhere; empty without positions."""
    map_link: str = ""
    """URL of a street map of the center."""


class CheckReport(dict[str, Any]):
    """Content of check.json, shown as a table."""

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def check_dataset(
    folder: Path,
    *,
    database: str,
    queries: str,
    positive_radius_m: float,
    positive_angle_deg: float | None,
    min_side_px: int,
    sample: int | None,
    cells: CellOptions,
    page: Path | None,
    show_paths: bool = False,
    settings: Mapping[str, Any],
) -> CheckReport:
    """Check a folder of images, or one with database and queries.

    Args:
        database, queries: names of the folders inside it.
        positive_radius_m: maximum distance of a positive.
        positive_angle_deg: maximum heading difference of a positive; None ignores headings.
        min_side_px: images with a shorter side are tiny.
        sample: number of images of each set that are read; None reads all.
        cells: division into classes, for a folder of training images.
        page: HTML page to write, with the images that something is wrong with; None writes none.
        show_paths: whether the page shows absolute paths.
        settings: plain settings, for the report.
    """
    sides = {name: folder / name for name in (database, queries)}
    is_test_set = all(side.is_dir() or index_file(side).is_file() for side in sides.values())
    folders = sides if is_test_set else {folder.absolute().name: folder}
    catalogues = {name: read_catalogue(each) for name, each in folders.items()}
    check_zones(*catalogues.values())
    extents = {name: extent_of(catalogue) for name, catalogue in catalogues.items()}
    report = CheckReport(
        folder=str(folder),
        settings=settings,
        sets={
            name: vars(_findings(catalogue, extents[name], min_side_px, sample))
            for name, catalogue in catalogues.items()
        },
    )
    if is_test_set:
        sides_found = catalogues[database], catalogues[queries]
        positives = find_positives(*sides_found, positive_radius_m, angle_deg=positive_angle_deg)
        lonely = np.flatnonzero([not len(found) for found in positives])
        report["queries_without_positive"] = list(map(catalogues[queries].name, lonely.tolist()))
        report["nearest_to_queries_without_positive"] = _nearest(*sides_found, lonely)
        partition = None
    else:
        (catalogue,) = catalogues.values()
        report["classes"], partition = _classes(catalogue, cells)
        if catalogue.places is not None:
            report["places"] = _places(catalogue, cells.min_images_per_class)
    if page is not None:
        elsewhere = [np.array([] if each is None else list(each.elsewhere), np.int64) for each in extents.values()]
        write_dataset_page(
            page,
            report,
            tuple(CheckedSet(name, catalogues[name], rows) for name, rows in zip(catalogues, elsewhere, strict=True)),
            partition=partition,
            num_groups=cells.num_groups,
            show_paths=show_paths,
        )
    return report


def _findings(catalogue: Catalogue, extent: Extent | None, min_side_px: int, sample: int | None) -> Findings:
    findings = Findings(len(catalogue), misplaced=_misplaced(catalogue, {} if extent is None else extent.elsewhere))
    if extent is not None:
        findings.where, findings.map_link = extent.text, extent.map_link
    rows = _sampled(len(catalogue), sample)
    digests = np.zeros(len(rows), "S16")
    sizes: Counter[str] = Counter()
    for index, inspection in enumerate(inspect_images(catalogue, rows)):
        row = int(rows[index])
        digests[index] = inspection.digest
        if inspection.size is None:
            findings.unreadable[catalogue.name(row)] = inspection.reason
            continue
        size = f"{inspection.size[0]} x {inspection.size[1]}"
        sizes[size] += 1
        if min(inspection.size) < min_side_px:
            findings.tiny.append(catalogue.name(row))
            findings.tiny_sizes[catalogue.name(row)] = size
    findings.duplicates = _duplicates(catalogue, rows, digests)
    findings.sizes = dict(sizes.most_common())
    findings.read = len(rows)
    if len(rows) < len(catalogue):
        counts = {"unreadable": len(findings.unreadable), "tiny": len(findings.tiny)}
        findings.estimates = {name: _estimate(count, len(rows)) for name, count in counts.items()}
    return findings


def _sampled(count: int, sample: int | None) -> np.ndarray:
    """Draw rows, one from each of `sample` ranges of equal size, so that they are spread evenly: sorted, int64 (n,)."""
    if sample is None or sample >= count:
        return np.arange(count)
    edges = np.linspace(0, count, sample + 1).astype(np.int64)
    return np.random.default_rng(_SEED).integers(edges[:-1], edges[1:])


def _estimate(found: int, read: int) -> dict[str, float]:
    """Compute a percentage and its interval, see `wilson_interval`."""
    low, high = wilson_interval(found, read)
    return {"percent": 100 * found / read, "low": low, "high": high}


def _duplicates(catalogue: Catalogue, rows: np.ndarray, digests: np.ndarray) -> list[list[str]]:
    order = np.argsort(digests, kind="stable")
    there = order[digests[order] != b""]
    ends = np.flatnonzero(digests[there[1:]] != digests[there[:-1]]) + 1
    return [list(map(catalogue.name, rows[each].tolist())) for each in np.split(there, ends) if len(each) > 1]


def _misplaced(catalogue: Catalogue, elsewhere: Mapping[int, str]) -> dict[str, str]:
    """Find images whose coordinates are impossible, far from all others, or contradict their names."""
    reasons: dict[int, str] = {}
    has_zone, east, north = catalogue.zone > 0, catalogue.east, catalogue.north
    hemisphere = hemispheres_of(catalogue)
    # Without a zone the coordinates may have any origin: Nordland's are meters along the track. A set on both sides of
    # the equator may count all its northings from one origin.
    beyond = {"east": has_zone, "north": has_zone & (hemisphere < 0)}
    for name, values, (low, high) in (("east", east, _EAST_M), ("north", north, _NORTH_M)):
        for row in np.flatnonzero(beyond[name] & ((values < low) | (values > high))).tolist():
            reasons[row] = f"{name} {values[row]:.0f} m is not from {low} to {high}"
    for row, reason in _contradictions(catalogue):
        reasons.setdefault(row, reason)
    for row in np.flatnonzero(has_zone & (hemisphere == Hemisphere.CONTRADICTED)).tolist():
        reasons.setdefault(row, f"its letter contradicts its north {north[row]:.0f} m")
    for row, reason in elsewhere.items():
        reasons.setdefault(row, reason)
    return {catalogue.name(row): reasons[row] for row in sorted(reasons)}


def _contradictions(catalogue: Catalogue) -> Iterator[tuple[int, str]]:
    """Find images whose names give impossible degrees, or degrees that differ from their UTM position."""
    try:
        degrees = parse_columns(catalogue.table["path"], ("latitude", "longitude"))
    except ValueError:  # names follow another convention
        return
    latitude, longitude = degrees["latitude"], degrees["longitude"]
    for row in np.flatnonzero((np.abs(latitude) > 90) | (np.abs(longitude) > 180)).tolist():
        yield row, f"latitude {latitude[row]:g}, longitude {longitude[row]:g} cannot be"
    known = (np.abs(latitude) < 80) & (np.abs(longitude) <= 180) & (catalogue.zone > 0)
    for zone in np.unique(catalogue.zone[known]).tolist():
        rows = np.flatnonzero(known & (catalogue.zone == zone))
        east, north, _, _ = utm.from_latlon(
            latitude[rows], longitude[rows], force_zone_number=zone, force_northern=True
        )
        off_m = north - catalogue.north[rows]
        off_m = np.minimum(np.abs(off_m), np.abs(off_m + _NORTH_M[1]))  # the northing may count from either origin
        meters = np.hypot(east - catalogue.east[rows], off_m)
        for row, far_m in zip(rows[meters > _TOO_FAR_M].tolist(), meters[meters > _TOO_FAR_M].tolist(), strict=True):
            yield row, f"its degrees are {far_m:,.0f} m from its UTM position"


def _nearest(database: Catalogue, queries: Catalogue, rows: np.ndarray) -> list[dict[str, Any]]:
    """Find the database image nearest to each query of `rows`, and its distance; None where a position is unknown."""
    distances = distances_between(database, queries, great_circle=is_wide(database, queries))
    known = np.flatnonzero(np.isfinite(distances.database).all(axis=1))
    found = np.full(len(rows), -1)
    placed = np.isfinite(distances.queries[rows]).all(axis=1)
    if len(known) and placed.any():
        found[placed] = known[cKDTree(distances.database[known]).query(distances.queries[rows[placed]])[1]]
    meters = Distances(distances.database, distances.queries[rows]).between(found[:, None])[:, 0]
    return [
        {
            "query": queries.name(query),
            "nearest": None if row < 0 else database.name(row),
            "distance_m": None if row < 0 else distance_m,
        }
        for query, row, distance_m in zip(rows.tolist(), found.tolist(), meters.tolist(), strict=True)
    ]


def _classes(catalogue: Catalogue, cells: CellOptions) -> tuple[dict[str, Any], Partition | None]:
    """Count classes and groups for these cells, and classes for others; return the classes too if there are any.

    All of it takes 3 s for 2 million images.
    """
    partition, counts = _partition(catalogue, cells)
    wider = {round(cells.cell_side_m * factor) for factor in _WIDER}
    bins = (360,) if np.isnan(catalogue.heading).any() else _BINS
    others = [
        replace(cells, cell_side_m=side, heading_bin_deg=degrees, groups_per_heading=1)
        for side in sorted(wider)
        for degrees in bins
        if "refused" in counts or (side, degrees) != (cells.cell_side_m, cells.heading_bin_deg)
    ]
    given = [_partition(catalogue, each)[1] for each in others]
    most = max([counts, *given], key=lambda each: each["classes"])  # the first of ties, so the smallest cells
    suggests = most is not counts and counts["classes"] < _FEW_CLASSES
    groups = {} if partition is None else _groups(partition)
    return {**counts, **groups, "with_other_cells": given, **({"suggested": most} if suggests else {})}, partition


def _partition(catalogue: Catalogue, cells: CellOptions) -> tuple[Partition | None, dict[str, Any]]:
    """Divide a catalogue into classes; returns None if there is none, and the cells with the numbers of classes."""
    used = {"cell_side_m": int(cells.cell_side_m), "heading_bin_deg": cells.heading_bin_deg}
    try:
        partition = build_partition(catalogue, **{**vars(cells), "num_groups": None})
    except NoClass:
        return None, {**used, "classes": 0, "images": 0}
    except ValueError as error:
        return None, {**used, "classes": 0, "images": 0, "refused": str(error)}
    num_classes = sum(group.num_classes for group in partition.groups)
    return partition, {**used, "classes": num_classes, "images": sum(len(group.rows) for group in partition.groups)}


def _places(catalogue: Catalogue, min_images: int) -> dict[str, int]:
    """Count the places by name, and those of them that are trained on."""
    assert catalogue.places is not None  # it has some
    names = pc.value_counts(catalogue.places)
    counts = names.field("counts").to_numpy()[pc.not_equal(names.field("values"), "").to_numpy(zero_copy_only=False)]
    enough = counts[counts >= min_images]
    return {
        "places": len(counts),
        "images": int(counts.sum()),
        "min_images": min_images,
        "places_with_enough_images": len(enough),
        "images_of_these": int(enough.sum()),
    }


def _groups(partition: Partition) -> dict[str, Any]:
    sizes = [np.diff(group.offsets) for group in partition.groups]
    values, images = np.unique(np.concatenate(sizes), return_counts=True)
    return {
        "classes_per_group": [len(size) for size in sizes],
        "images_per_group": [int(size.sum()) for size in sizes],
        "classes_with_so_many_images": dict(zip(values.tolist(), images.tolist(), strict=True)),
    }


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for name, found in report["sets"].items():
        yield f"{name}: {found['images']:,} images"
        if said := format_sample(found):
            yield f"  {said}"
        if found["where"]:
            yield f"  {found['where']} {found['map_link']}"
        sizes = list(found["sizes"].items())
        shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:3])
        yield f"  sizes          {shown}{f' and {len(sizes) - 3} more' if len(sizes) > 3 else ''}"
        for title in KINDS:
            items = list(found[title].items() if isinstance(found[title], dict) else found[title])
            yield f"  {title:14} {len(items)}{f', the first: {format_finding(items[0])}' if items else ''}"
    if "queries_without_positive" in report:
        yield f"queries without a positive: {len(report['queries_without_positive'])}"
        return
    if "places" in report:
        counts = report["places"]
        yield (
            f"places: {counts['places']:,} of {counts['images']:,} images; {counts['places_with_enough_images']:,} "
            f"have at least {counts['min_images']}, together {counts['images_of_these']:,} images"
        )
    is_few = report["classes"]["classes"] < _FEW_CLASSES
    for counts in (report["classes"], *(report["classes"]["with_other_cells"] if is_few else ())):
        groups = f" in {len(counts['classes_per_group'])} groups" if "classes_per_group" in counts else ""
        yield (
            f"cells of {counts['cell_side_m']} m and {counts['heading_bin_deg']} degrees: {counts['classes']:,} "
            f"classes of {counts['images']:,} images{groups}"
        )
        if "refused" in counts:
            yield f"  {counts['refused']}"
    if "suggested" in report["classes"]:
        yield f"few classes; most of them with {format_cells(report['classes']['suggested'])}"
