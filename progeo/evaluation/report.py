"""Write the HTML report of an evaluation: recalls, a map, and queries next to their retrieved images.

The report is one file that opens offline, with a bounded size whatever the number of queries. All numbers are computed
elsewhere.
"""

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from torchvision.transforms.v2.functional import to_pil_image

from progeo.evaluation.metrics import Recall
from progeo.evaluation.pages import read_part
from progeo.evaluation.retrieved import Retrieved
from progeo.files import each_file, replacing
from progeo.image_files import open_image
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
        path: the HTML file to write.
        retrieved: the predictions.
        title: heading of the report.
        facts: what was evaluated: encoder, data set, sizes.
        recalls: by the name of a group of queries, its recalls at every N, all queries first; empty without positives.
        num_shown: predictions shown per query; all K if K is smaller.
        max_queries: queries shown with their images; the map shows all of them, or 10,000.
    """
    gallery = (_by_failure if retrieved.distances is None else _by_distance)(retrieved, max_queries)
    script = read_part("report.js")
    page = Template(read_part("report.html")).substitute(
        style=read_part("page.css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escape(title),
        facts="\n".join(_fact(name, text) for name, text in facts.items()),
        recalls=_recall_table(recalls) if recalls else "",
        curve=_recall_curve(next(iter(recalls.values()))) if recalls else "",
        map=gallery.map,
        conditions=_condition_choice(retrieved.conditions),
        shown=gallery.sentence,
        verdicts=gallery.verdicts,
        first=gallery.first,
        last=gallery.last,
        rows="\n".join(_rows(retrieved, gallery.queries, num_shown)),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class _Gallery:
    """The queries to show, in order, and the texts above them."""

    queries: np.ndarray
    sentence: str
    first: str
    """Word for the start of the order, such as `worst`."""
    last: str
    verdicts: str = ""
    map: str = ""


def _by_failure(retrieved: Retrieved, max_queries: int) -> _Gallery:
    """Order failures first, the largest error first, and add a map."""
    errors = np.where(np.isnan(retrieved.distances_m[:, 0]), np.inf, retrieved.distances_m[:, 0])
    order = np.lexsort([-errors, retrieved.right[:, 0]])
    shown = _shown(order, retrieved.right[:, 0], max_queries)
    rule = "was given with the query" if retrieved.rule == "as given" else f"lies {retrieved.rule} of the query"
    sentence = f"{_shown_sentence(len(shown), len(order))} A prediction is right when it {rule}."
    verdicts = _verdict_choice(len(shown), int(np.sum(~retrieved.right[shown, 0])))
    return _Gallery(shown, sentence, "worst", "best", verdicts, _map(retrieved, order))


def _by_distance(retrieved: Retrieved, max_queries: int) -> _Gallery:
    """Order queries by the descriptor distance of their first prediction; too many are sampled evenly."""
    assert retrieved.distances is not None
    order = np.argsort(retrieved.distances[:, 0], kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(len(order), max_queries)).astype(int)]
    some = "All" if len(shown) == len(order) else f"{len(shown):,} of"
    sentence = (
        f"{some} {len(order):,} queries shown, those with the nearest descriptors first. Nobody knows what is right: "
        f"the numbers are distances between descriptors."
    )
    return _Gallery(shown, sentence, "nearest", "farthest")


def _verdict_choice(num_shown: int, num_wrong: int) -> str:
    choices = (
        ("", "all", num_shown, " checked"),
        ("wrong", "wrong", num_wrong, ""),
        ("right", "right", num_shown - num_wrong, ""),
    )
    labels = "\n".join(
        f'<label><input type="radio" name="verdict" value="{value}"{checked}>{name} ({count:,})</label>'
        for value, name, count, checked in choices
    )
    return f"<fieldset>\n<legend>At rank 1:</legend>\n{labels}\n</fieldset>"


def _shown(order: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Select the worst failures and evenly sampled hits, which get at least a quarter of `count`."""
    wrong, fine = order[~right[order]], order[right[order]]
    num_fine = min(len(fine), max(count // 4, count - len(wrong)))
    some = np.linspace(0, len(fine) - 1, num_fine).astype(int) if num_fine else np.array([], int)
    return np.concatenate([wrong[: count - num_fine], fine[some]])


def _fact(name: str, text: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'


def _shown_sentence(num_shown: int, num_queries: int) -> str:
    if num_shown < num_queries:
        return f"{num_shown:,} of {num_queries:,} queries shown, worst first, and some that are right."
    return f"All {num_queries:,} queries shown, worst first."


def _recall_table(recalls: Mapping[str, Sequence[Recall]]) -> str:
    """Build a table with a row for each group of queries (the first with its interval) and a column for each N."""
    first = next(iter(recalls.values()), [])
    lines = ["<tr><th></th><th>queries</th>" + "".join(f"<th>R@{each.n}</th>" for each in first) + "</tr>"]
    for place, (name, row) in enumerate(recalls.items()):
        cells = [f"{each.percent:.1f}" for each in row]
        if place == 0:
            cells = [f"<b>{each.percent:.1f}</b> <small>{each.low:.1f} to {each.high:.1f}</small>" for each in row]
        count = f"{row[0].count:,}" if row else ""
        texts = "".join(f"<td>{cell}</td>" for cell in (count, *cells))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{texts}</tr>')
    rows = "\n".join(lines)
    return f'<h2>Recall in %</h2>\n<table class="recalls">\n{rows}\n</table>'


def _recall_curve(recalls: Sequence[Recall]) -> str:
    """Draw recall from 0 to 100 % over N as an SVG, with N on a logarithmic axis from 1."""
    left, right, top, bottom = 36, 308, 12, 132
    decades = math.log(max((each.n for each in recalls), default=1)) or 1.0
    points = [
        (left + (right - left) * math.log(each.n) / decades, bottom - (bottom - top) * each.percent / 100, each)
        for each in sorted(recalls, key=lambda each: each.n)
    ]
    grid = "".join(
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{percent}</text>'
        for percent, y in ((0, bottom), (50, (top + bottom) // 2), (100, top))
    )
    ticks = "".join(
        f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{each.n}</text>' for x, _, each in points
    )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>R@{each.n}: {each.percent:.1f} %</title></circle>'
        for x, y, each in points
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    return (
        '<svg class="curve" viewBox="0 0 320 168" role="img" aria-label="Recall in percent over N">'
        f'{grid}{ticks}<polyline points="{line}"/>{dots}'
        f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">recall@N in % over N</text></svg>'
    )


def _map(retrieved: Retrieved, order: np.ndarray) -> str:
    """Draw the query positions in meters, north up; failures are drawn above hits."""
    _, queries_m = retrieved.places_m
    known = order[np.isfinite(queries_m[order]).all(axis=1)]
    if not len(known):
        return ""
    dots = known[:: -(-len(known) // _MAX_DOTS)]
    places = queries_m[dots] - queries_m[dots].min(axis=0)
    width, height = np.maximum(places.max(axis=0), 1.0).tolist()
    room = 0.05 * max(width, height)
    circles = "".join(
        f'<circle class="{_verdict(retrieved, row)}" cx="{east:.1f}" cy="{height - north:.1f}" data-query="{row}" '
        f'data-condition="{escape(retrieved.conditions[row])}"><title>{escape(_named(retrieved, row))}</title></circle>'
        for row, (east, north) in zip(dots[::-1].tolist(), places[::-1].tolist(), strict=True)
    )
    return (
        "<h2>Where the queries were taken</h2>"
        f'<svg class="{"map dense" if len(dots) > _DENSE else "map"}" '
        f'viewBox="{-room:.1f} {-room:.1f} {width + 2 * room:.1f} {height + 2 * room:.1f}" '
        'tabindex="0" role="application" '
        f'aria-label="Map of the queries: arrows move it, plus and minus zoom, 0 shows all">{circles}</svg>'
        '<div class="key"><span><i class="dot"></i>right at rank 1</span><span><i class="dot wrong"></i>wrong</span>'
        '<span><i class="scale"></i><span id="scale"></span></span>'
        '<span>north is up; drag, turn the wheel, or arrows, + - 0</span></div><p id="chosen" aria-live="polite"></p>'
    )


def _verdict(retrieved: Retrieved, query: int) -> str:
    if retrieved.distances is not None:
        return "found"
    return "right" if retrieved.right[query, 0] else "wrong"


def _named(retrieved: Retrieved, query: int) -> str:
    distance_m = retrieved.distances_m[query, 0]
    meters = "" if math.isnan(distance_m) else f", {distance_m:,.1f} m off"
    return f"{retrieved.queries.name(query)}: {_verdict(retrieved, query)}{meters}"


def _condition_choice(conditions: np.ndarray) -> str:
    names = [name for name in dict.fromkeys(conditions.tolist()) if name]
    if not names:
        return ""
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in names)
    return f'<label>condition <select name="condition"><option value="">all</option>{options}</select></label>'


def _rows(retrieved: Retrieved, queries: np.ndarray, num_shown: int) -> list[str]:
    """Build a row for each query; thumbnails are made in parallel."""
    predicted = retrieved.predictions[queries, :num_shown]
    paths = [retrieved.queries.path(row) for row in queries.tolist()]
    paths += [retrieved.database.path(row) for row in np.unique(predicted[predicted >= 0]).tolist()]
    names = [str(path) for path in paths]
    thumbnails = dict(zip(names, each_file(_thumbnail, names, total=len(names), description="report"), strict=True))
    return [_row(retrieved, row, place, num_shown, thumbnails) for place, row in enumerate(queries.tolist())]


def _row(retrieved: Retrieved, query: int, place: int, num_shown: int, thumbnails: Mapping[str, str]) -> str:
    path, condition = retrieved.queries.path(query), escape(retrieved.conditions[query])
    found = retrieved.predictions[query, :num_shown].tolist()
    figures = [_prediction(retrieved, query, rank, thumbnails) for rank, row in enumerate(found) if row >= 0]
    is_on_map = retrieved.distances is None and np.isfinite(retrieved.places_m[1][query]).all()
    on_map = "<button type='button'>on the map</button>" if is_on_map else ""
    return (
        f'<li class="row {_verdict(retrieved, query)}" data-query="{query}" data-place="{place}" '
        f'data-name="{escape(path.name)}" data-condition="{condition}">\n'
        f'<figure class="query">{thumbnails[str(path)]}<figcaption><span>Query {condition} {on_map}</span>'
        f'<span class="name">{escape(path.name)}</span></figcaption></figure>\n<ol>\n{"".join(figures)}</ol>\n</li>'
    )


def _prediction(retrieved: Retrieved, query: int, rank: int, thumbnails: Mapping[str, str]) -> str:
    path = retrieved.database.path(int(retrieved.predictions[query, rank]))
    if retrieved.distances is not None:
        verdict, mark = "found", ""
        distance = f"{retrieved.distances[query, rank]:.3f}"
    else:
        verdict, sign = ("right", "✓") if retrieved.right[query, rank] else ("wrong", "✗")
        mark = f' · <b class="mark">{sign} {verdict}</b>'
        distance_m = float(retrieved.distances_m[query, rank])
        distance = "" if math.isnan(distance_m) else f"{distance_m:,.1f} m"
    return (
        f'<li><figure class="{verdict}" title="{escape(str(path))}">{thumbnails[str(path)]}'
        f"<figcaption><span>Rank {rank + 1}{mark}</span>"
        f"<span>{distance}</span></figcaption></figure></li>\n"
    )


def _thumbnail(name: str) -> str:
    """Return the image as an `<img>` with embedded pixels, or a placeholder if it cannot be opened."""
    path, stream = Path(name), io.BytesIO()
    try:
        with open_image(path) as image:
            image.thumbnail((_THUMBNAIL_SIDE_PX, _THUMBNAIL_SIDE_PX))
            to_pil_image(pixels_of(image)).save(stream, "JPEG", quality=_JPEG_QUALITY)
    except Exception:  # Pillow's decoders raise errors of many kinds, and no thumbnail is worth losing the report.
        return f'<span class="missing" role="img" aria-label="{escape(path.name)}">image cannot be opened</span>'
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="{escape(path.name)}" loading="lazy" src="data:image/jpeg;base64,{data}">'
