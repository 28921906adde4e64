"""The HTML report of an evaluation: its recalls, and every query beside the images retrieved for it.

One file that opens without a network. It shows what it is given and measures nothing.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from progeo.files import replacing

_THUMBNAIL_SIDE_PX = 128
_JPEG_QUALITY = 80


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    recalls: Mapping[int, float],
    query_paths: Sequence[Path],
    database_paths: Sequence[Path],
    predictions: np.ndarray,
    right: np.ndarray,
    rule: str,
    distances_m: np.ndarray,
    num_shown: int = 5,
    max_queries: int = 200,
) -> None:
    """Write the report to `path`, the worst failures first.

    Args:
        path: the HTML file to write.
        title: the heading of the report.
        facts: what was evaluated: encoder, data set, sizes.
        recalls: N to recall@N, in percent.
        query_paths: Q images.
        database_paths: the images that `predictions` indexes.
        predictions: `(Q, K)` int64 indices into `database_paths`, best first.
        right: `(Q, K)` bool, whether a prediction is right.
        rule: when it is, as "lies within 25 m of the query".
        distances_m: `(Q, K)` metres on the ground between a query and its predictions, NaN where unknown.
        num_shown: predictions shown per query; all K when K is smaller.
        max_queries: queries shown; the others are counted and left out.
    """
    assert predictions.shape == right.shape == distances_m.shape and len(predictions) == len(query_paths)
    order = np.lexsort([-distances_m[:, 0], right[:, 0]])[:max_queries]  # failures first, the farthest first
    num_wrong = int(np.sum(~right[order, 0]))
    rows = [
        _row(
            query_paths[query],
            [database_paths[index] for index in predictions[query, :num_shown]],
            right[query, :num_shown],
            distances_m[query, :num_shown],
        )
        for query in order
    ]
    template = Template(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        facts="\n".join(_table_row(name, value) for name, value in facts.items()),
        recalls="\n".join(_table_row(f"R@{n}", f"{recall:.1f} %") for n, recall in sorted(recalls.items())),
        curve=_recall_curve(recalls),
        shown=_shown_sentence(len(order), len(query_paths)),
        rule=escape(rule),
        num_shown=f"{len(order):,}",
        num_wrong=f"{num_wrong:,}",
        num_right=f"{len(order) - num_wrong:,}",
        rows="\n".join(rows),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown_sentence(num_shown: int, num_queries: int) -> str:
    if num_shown < num_queries:
        return f"{num_shown:,} of {num_queries:,} queries shown, worst first."
    return f"All {num_queries:,} queries shown, worst first."


def _table_row(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'


def _recall_curve(recalls: Mapping[int, float]) -> str:
    """Recall from 0 to 100 % over N, an SVG drawing; N on a logarithmic axis from 1."""
    left, right, top, bottom = 36, 308, 12, 132
    decades = math.log(max(recalls, default=1)) or 1.0
    points = [
        (left + (right - left) * math.log(n) / decades, bottom - (bottom - top) * recall / 100, n, recall)
        for n, recall in sorted(recalls.items())
    ]
    grid = "".join(
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{percent}</text>'
        for percent, y in ((0, bottom), (50, (top + bottom) // 2), (100, top))
    )
    ticks = "".join(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{n}</text>' for x, _, n, _ in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>R@{n}: {recall:.1f} %</title></circle>'
        for x, y, n, recall in points
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    return (
        '<svg class="curve" viewBox="0 0 320 168" role="img" aria-label="Recall in percent over N">'
        f'{grid}{ticks}<polyline points="{line}"/>{dots}'
        f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">recall@N in % over N</text></svg>'
    )


def _row(query: Path, predicted: Sequence[Path], right: np.ndarray, distances_m: np.ndarray) -> str:
    figures = [
        _prediction(path, rank, bool(is_right), float(distance_m))
        for rank, (path, is_right, distance_m) in enumerate(zip(predicted, right, distances_m, strict=True), start=1)
    ]
    return (
        f'<li class="row {"right" if right[0] else "wrong"}">\n'
        f'<figure class="query">{_thumbnail(query)}'
        f'<figcaption><span>Query</span><span class="name">{escape(query.name)}</span></figcaption></figure>\n'
        f"<ol>\n{''.join(figures)}</ol>\n</li>"
    )


def _prediction(path: Path, rank: int, is_right: bool, distance_m: float) -> str:
    verdict, sign = ("right", "✓") if is_right else ("wrong", "✗")
    distance = "" if math.isnan(distance_m) else f"{distance_m:,.1f} m"
    return (
        f'<li><figure class="{verdict}" title="{escape(str(path))}">{_thumbnail(path)}'
        f'<figcaption><span>Rank {rank} · <b class="mark">{sign} {verdict}</b></span>'
        f"<span>{distance}</span></figcaption></figure></li>\n"
    )


def _thumbnail(path: Path) -> str:
    """The image as an `<img>` that holds its own pixels, or a placeholder when it cannot be opened."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((_THUMBNAIL_SIDE_PX, _THUMBNAIL_SIDE_PX))
            image.convert("RGB").save(stream, "JPEG", quality=_JPEG_QUALITY)
    except Exception:  # Pillow's decoders raise errors of many kinds, and no thumbnail is worth losing the report.
        return f'<span class="missing" role="img" aria-label="{escape(path.name)}">image cannot be opened</span>'
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="{escape(path.name)}" src="data:image/jpeg;base64,{data}">'
