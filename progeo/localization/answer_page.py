"""Write localizations as an HTML page: each photo with its position, how likely that is, its matches and a map."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.files import is_file
from progeo.image_files import Orientation
from progeo.localization.localizations import Localization, Match
from progeo.pages.gallery import Gallery, Item, Measure, Photos, Row, Strip
from progeo.pages.maps import Detail, Map, MapFrame, Points, Polygons, map_frame
from progeo.pages.page import shortened, shown_path, write_page
from progeo.places.catalogue import Catalogue
from progeo.remote_files import path_of

CONFIDENCES = (
    (0.9, "Very likely within {radius_m:g} m ({percent} %)"),
    (0.7, "Likely within {radius_m:g} m ({percent} %)"),
    (0.0, "Uncertain: within {radius_m:g} m with a probability of {percent} %"),
)
"""Minimum confidence of a known position, and how it is put into words."""
_UNKNOWN = "Unknown: the best match is within {radius_m:g} m with a probability of {percent} %"
_VERDICTS = ("known", "unknown", "no confidence", "error")
_MAX_PICTURES = 500
"""Maximum number of pictures; photos get them before their matches."""
_MAX_LISTED = 200
"""Maximum number of photos in the table of positions."""


def write_answer_page(
    path: Path,
    results: Sequence[Localization],
    *,
    catalogue: Catalogue | None = None,
    cell_side_m: float = 0,
    orientation: Orientation = "exif",
    by_text: bool = False,
    show_paths: bool = False,
    spreadsheet_safe: bool = False,
) -> None:
    """Write the page.

    Args:
        catalogue: the images or classes of the place index that was searched, for the map; None shows no map.
        cell_side_m: side of the cells of classes; 0 for an index of images.
        orientation: that of the index, by which photos and images are shown.
        by_text: whether queries are sentences instead of paths of photos.
        show_paths: whether the page shows absolute paths.
        spreadsheet_safe: see `write_page`.
    """
    names = [result.query if by_text else shown_path(result.query, show_paths) for result in results]
    results = [
        replace(result, error=result.error.replace(result.query, name))
        for result, name in zip(results, names, strict=True)
    ]
    verdicts = [_verdict(result) for result in results]
    write_page(
        path,
        "answer.html",
        title=_title(names, by_text=by_text),
        show_paths=show_paths,
        spreadsheet_safe=spreadsheet_safe,
        gallery=_gallery(results, names, verdicts, Photos(orientation), by_text=by_text, show_paths=show_paths),
        map=None if catalogue is None else _map(catalogue, cell_side_m, results, names, show_paths=show_paths),
        answers=[
            {
                "name": name,
                "position": result.matches[0].position if result.matches else "none",
                "link": result.matches[0].map_link if result.matches else "",
                "confidence": confidence_in_words(result, by_text=by_text),
                "verdict": verdict,
            }
            for name, result, verdict in zip(names[:_MAX_LISTED], results, verdicts, strict=False)
        ],
        num_queries=len(results),
        counts={verdict: verdicts.count(verdict) for verdict in _VERDICTS if verdict in verdicts},
    )


def confidence_in_words(result: Localization, *, by_text: bool = False) -> str:
    """Say how likely the position of a query is correct, or why nobody knows."""
    if result.error:
        return result.error
    if result.confidence is None:
        return f"No confidence: {_why_none(result, by_text=by_text)}"
    words = _UNKNOWN
    if result.known:
        words = next(words for minimum, words in CONFIDENCES if result.confidence >= minimum)
    return words.format(radius_m=result.radius_m, percent=_percent(result.confidence))


def _percent(confidence: float) -> str:
    """Format a confidence in percent; none is certain."""
    if confidence >= 0.995:
        return "over 99"
    return "under 1" if confidence < 0.005 else f"{100 * confidence:.0f}"


def _why_none(result: Localization, *, by_text: bool) -> str:
    if by_text:
        return "it is calibrated on photos only"
    if result.is_restricted:
        return "it is calibrated on searches of the complete index"
    if result.matches[0].east_m is None:
        return "the position of the best match is unknown"
    if result.verified and result.radius_m is not None:
        return "it is calibrated without verification: run `progeo index calibrate --verify`"
    return "the index is not calibrated"


def _verdict(result: Localization) -> str:
    if result.error:
        return "error"
    return "no confidence" if result.known is None else "known" if result.known else "unknown"


def _title(names: Sequence[str], *, by_text: bool) -> str:
    if by_text:
        return f"Places that match “{names[0]}”"
    if len(names) > 1:
        return f"Where {len(names):,} photos were taken"
    return f"Where {shortened(PurePath(names[0]).name)} was taken"


def _gallery(
    results: Sequence[Localization],
    names: Sequence[str],
    verdicts: Sequence[str],
    photos: Photos,
    *,
    by_text: bool,
    show_paths: bool,
) -> Gallery:
    own = [
        None if by_text else photos.add(name, Path(result.query), embedded=number < _MAX_PICTURES)
        for number, (result, name) in enumerate(zip(results, names, strict=True))
    ]
    rows, is_verified = [], any(result.verified for result in results)
    for key, (result, photo, verdict) in enumerate(zip(results, own, verdicts, strict=True)):
        items = [_item(photos, rank, match, is_verified, show_paths) for rank, match in enumerate(result.matches, 1)]
        note = confidence_in_words(result, by_text=by_text)
        if result.matches:
            note = f"{result.matches[0].position}. {note}"
        strips = [Strip("Matches", items)] if items else []
        link = result.matches[0].map_link if result.matches else ""
        rows.append(Row(key, photo, strips, facets={"answer": verdict}, note=note, link=link))
    has_classes = any(match.probability is not None for result in results for match in result.matches)
    last = Measure("probability", "percent") if has_classes else Measure("descriptor_distance", "descriptor")
    measures = [Measure("rank", "rank"), Measure("position", "text"), last]
    kinds = [verdict for verdict in _VERDICTS if verdict in verdicts]
    noun = "sentence" if by_text else "photo"
    return Gallery(
        photos,
        rows,
        [*measures, *([Measure("matched_points", "inliers")] if is_verified else [])],
        {"answer": kinds} if len(kinds) > 1 else {},
        noun=noun,
        plural=f"{noun}s",
    )


def _item(photos: Photos, rank: int, match: Match, is_verified: bool, show_paths: bool) -> Item:
    if match.probability is not None:
        return Item(photos.add(match.path, None), "", (rank, match.position, 100 * match.probability))
    path = path_of(match.path)
    embedded = photos.num_embedded < _MAX_PICTURES and is_file(path)
    number = photos.add(shown_path(match.path, show_paths), path, embedded=embedded)
    values = (rank, match.position, match.distance, *([match.inliers] if is_verified else []))
    return Item(number, "", values, match.lines if embedded else ())


def _map(
    catalogue: Catalogue,
    cell_side_m: float,
    results: Sequence[Localization],
    names: Sequence[str],
    *,
    show_paths: bool,
) -> Map | None:
    frame = map_frame(catalogue)
    (positions,) = frame.positions
    if not np.isfinite(positions).all(axis=1).any():
        return None
    places = _Places(catalogue, cell_side_m, frame, results)
    answered = [key for key, result in enumerate(results) if result.matches]
    estimated = Points(
        "estimated position",
        "photo",
        np.array([places.of(results[key].matches[0]) for key in answered]).reshape(-1, 2),
        answered,
        [names[key] for key in answered],
    )
    details = {key: places.detail(results[key].matches, show_paths=show_paths) for key in answered}
    alone = details.pop(answered[0]) if len(answered) == 1 else Detail()
    return Map(
        frame.unit,
        positions,
        "classes of the index" if cell_side_m else "images of the index",
        [*alone.points, estimated],
        alone.polygons,
        details,
    )


class _Places:
    """Where the matches of results lie on the map."""

    def __init__(
        self, catalogue: Catalogue, cell_side_m: float, frame: MapFrame, results: Sequence[Localization]
    ) -> None:
        self._unit = frame.unit
        self._cell_side_m = cell_side_m
        paths = catalogue.table["path"]
        wanted = pa.array({match.path for result in results for match in result.matches}, paths.type)
        rows = np.flatnonzero(pc.is_in(paths, value_set=wanted).to_numpy())
        (positions,) = frame.positions
        self._positions = dict(zip(paths.take(rows).to_pylist(), positions[rows], strict=True))

    def of(self, match: Match) -> np.ndarray:
        """Return the position of a match, (2,)."""
        return self._positions[match.path]

    def detail(self, matches: Sequence[Match], *, show_paths: bool) -> Detail:
        """Draw the matches of one query: images as points, or cells of classes, the more opaque the more probable."""
        if matches[0].probability is not None:
            return Detail(polygons=[self._cells(matches)])
        labels = [f"{rank}: {shown_path(match.path, show_paths)}" for rank, match in enumerate(matches, 1)]
        return Detail([Points("matches", "match", np.array([self.of(match) for match in matches]), labels=labels)])

    def _cells(self, matches: Sequence[Match]) -> Polygons:
        """Draw each cell once: its classes differ in heading only."""
        ranks: dict[tuple[float, ...], list[int]] = {}
        for rank, match in enumerate(matches):
            ranks.setdefault(tuple(self.of(match).tolist()), []).append(rank)
        shares = [sum(matches[rank].probability or 0.0 for rank in of_cell) for of_cell in ranks.values()]
        return Polygons(
            "cells by probability",
            0,
            np.array([self._corners(matches[of_cell[0]]) for of_cell in ranks.values()]),
            [
                f"{', '.join(str(rank + 1) for rank in of_cell)}: {100 * share:.1f} %"
                for of_cell, share in zip(ranks.values(), shares, strict=True)
            ],
            [share / (max(shares) or 1.0) for share in shares],
        )

    def _corners(self, match: Match) -> np.ndarray:
        """Return the corners of a class's cell, (4, 2), NaN if they are unknown."""
        center = self.of(match)
        if self._unit == "meters":
            return center + np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * self._cell_side_m / 2
        if match.corners is None:
            return np.full((4, 2), np.nan)
        corners = np.array(match.corners)[:, ::-1]
        corners[:, 1] += 360 * np.round((center[1] - corners[:, 1]) / 360)  # on the same side of 180 degrees
        return corners
