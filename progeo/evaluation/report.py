"""Write the HTML report of an evaluation: recalls, a map, and queries next to their retrieved images.

The report has a bounded size whatever the number of queries. All numbers are computed elsewhere.
"""

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.transforms.v2.functional import to_pil_image

from progeo.evaluation.city_map import city_map
from progeo.evaluation.metrics import Recall
from progeo.evaluation.pages import read_script, write_page
from progeo.evaluation.retrieved import Retrieved
from progeo.files import each_file
from progeo.image_files import open_image, taking_turns
from progeo.pixels import pixels_of

_THUMBNAIL_SIDE_PX = 128
_JPEG_QUALITY = 80
_MAX_DOTS = 10_000
_DENSE = 1000
"""Above this number of dots, the map draws smaller ones."""


def write_report(
    path: Path,
    retrieved: Retrieved,
    *,
    title: str,
    facts: Mapping[str, str],
    recalls: Mapping[str, Sequence[Recall]],
    num_shown: int = 5,
    max_queries: int = 240,
) -> None:
    """Write the report, the worst failures first; without positives, the smallest descriptor distances first.

    Args:
        facts: what was evaluated: encoder, data set, sizes.
        recalls: by the name of a group of queries, its recalls at every N, all queries first; empty without positives.
        num_shown: predictions shown per query; all K if K is smaller.
        max_queries: queries shown with their images; the map shows all of them, or 10,000.
    """
    order = _order(retrieved)
    shown = _select(order, retrieved, max_queries)
    predicted = retrieved.predictions[shown, :num_shown]
    paths = [retrieved.queries.path(row) for row in shown.tolist()]
    if retrieved.classes is None:
        paths += [retrieved.database.path(row) for row in np.unique(predicted[predicted >= 0]).tolist()]
    thumbnails = each_file(_thumbnail, paths, total=len(paths), description="report")
    on_map = order[np.isfinite(retrieved.positions_m[1][order]).all(axis=1)] if retrieved.labeled else order[:0]
    write_page(
        path,
        "report.html",
        title=title,
        facts=facts,
        recalls=recalls,
        curve=_curve(next(iter(recalls.values()), [])),
        map=_map(retrieved, on_map) if len(on_map) else None,
        on_map=set(on_map.tolist()),
        retrieved=retrieved,
        city=None if retrieved.classes is None else city_map(retrieved, retrieved.classes, shown),
        conditions=[name for name in dict.fromkeys(retrieved.conditions.tolist()) if name],
        shown=shown.tolist(),
        num_wrong=int(np.sum(~retrieved.correct[shown, 0])) if retrieved.labeled else 0,
        num_shown=num_shown,
        thumbnails=dict(zip(paths, thumbnails, strict=True)),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(read_script("report.js").encode()).digest()).decode(),
    )


def _order(retrieved: Retrieved) -> np.ndarray:
    """Order queries: failures first, the largest error first; without ground truth by their nearest descriptor.

    Without ground truth, queries that were compared with classes are ordered by the probability of the best one.
    """
    if not retrieved.labeled:
        of_classes = None if retrieved.classes is None else -retrieved.classes.probabilities
        nearest = retrieved.distances if of_classes is None else of_classes
        assert nearest is not None  # required without ground truth
        return np.argsort(nearest[:, 0], kind="stable")
    errors = np.where(np.isnan(retrieved.distances_m[:, 0]), np.inf, retrieved.distances_m[:, 0])
    return np.lexsort([-errors, retrieved.correct[:, 0]])


def _select(order: np.ndarray, retrieved: Retrieved, count: int) -> np.ndarray:
    """Select the worst failures and evenly sampled hits, which get at least a quarter of `count`; others evenly."""
    if not retrieved.labeled:
        return _sample(order, count)
    is_hit = retrieved.correct[order, 0]
    failures, hits = order[~is_hit], order[is_hit]
    num_hits = min(len(hits), max(count // 4, count - len(failures)))
    return np.concatenate([failures[: count - num_hits], _sample(hits, num_hits)])


def _sample(rows: np.ndarray, count: int) -> np.ndarray:
    """Sample at most `count` rows evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(int)]


def _curve(recalls: Sequence[Recall]) -> list[tuple[float, Recall]]:
    """Return the recalls by N, each with its position on a logarithmic axis, 0 at N = 1 and 1 at the largest N."""
    longest = math.log(max((each.n for each in recalls), default=1)) or 1.0
    return [(math.log(each.n) / longest, each) for each in sorted(recalls, key=lambda each: each.n)]


@dataclass(frozen=True)
class _Map:
    """The positions of queries in meters, north up."""

    view_box: str
    dots: list[tuple[int, float, float]]
    """Row of the query, x and y; the best first, so that failures are drawn above hits."""
    is_dense: bool


def _map(retrieved: Retrieved, queries: np.ndarray) -> _Map:
    """Lay out the map of queries of known position, the worst first."""
    rows = queries[:: -(-len(queries) // _MAX_DOTS)][::-1]
    positions_m = retrieved.positions_m[1][rows]
    positions_m = positions_m - positions_m.min(axis=0)
    width, height = np.maximum(positions_m.max(axis=0), 1.0).tolist()
    room = 0.05 * max(width, height)
    return _Map(
        view_box=f"{-room:.1f} {-room:.1f} {width + 2 * room:.1f} {height + 2 * room:.1f}",
        dots=[
            (row, east, height - north) for row, (east, north) in zip(rows.tolist(), positions_m.tolist(), strict=True)
        ],
        is_dense=len(rows) > _DENSE,
    )


def _thumbnail(path: Path) -> str:
    """Return a small JPEG of an image in base64; empty if the image cannot be opened."""
    stream = io.BytesIO()
    try:
        with open_image(path) as image, taking_turns(image):
            image.thumbnail((_THUMBNAIL_SIDE_PX, _THUMBNAIL_SIDE_PX))
            to_pil_image(pixels_of(image)).save(stream, "JPEG", quality=_JPEG_QUALITY)
    except Exception:  # Pillow's decoders raise errors of many kinds, and no thumbnail is worth losing the report.
        return ""
    return base64.b64encode(stream.getvalue()).decode("ascii")
