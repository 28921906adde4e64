"""Write the report of an evaluation: recalls and their curve, a map, every query beside its predictions, distances.

The page has a bounded size whatever the number of queries. All numbers are computed elsewhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from progeo.evaluation.metrics import Recall
from progeo.evaluation.missed import Missed
from progeo.evaluation.protocols import Published
from progeo.evaluation.report_gallery import MAX_ROWS, query_gallery
from progeo.evaluation.report_map import query_map
from progeo.evaluation.retrieved import Retrieved
from progeo.pages.charts import Bars, Chart, Series
from progeo.pages.page import shortened, write_page

_MAX_PICTURED = 200
_LABEL_ROOM = 7.0
"""Distance of labels in the curve, in percent."""
_EDGES_M = (0, 1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, np.inf)
_X_LABELS = {
    "condition": "condition; below, the number of queries",
    "distance": "{unit} to the {target}; below, the number of queries",
    "heading": "degrees to the nearest heading of a positive; below, the number of queries",
}


@dataclass(frozen=True)
class Measured:
    """What was measured with ground truth."""

    recalls: Sequence[Recall]
    """By every criterion, for every group of queries, at every N, see `recall_table`."""
    chance: Mapping[int, float]
    """Recall of random retrieval in percent, by N."""
    published: Sequence[Published] = ()
    """Published recalls of the same protocol."""
    missed: Missed | None = None
    """The best correct candidates of the queries of `shown_queries`."""


def write_report(
    path: Path,
    retrieved: Retrieved,
    *,
    title: str,
    facts: Mapping[str, str],
    measured: Measured | None = None,
    show_paths: bool = False,
    spreadsheet_safe: bool = False,
    num_shown: int = 5,
    max_pictured: int = _MAX_PICTURED,
) -> None:
    """Write the report, the worst failures first; without positives, the smallest descriptor distances first.

    Args:
        facts: what was evaluated: encoder, data set, sizes.
        measured: recalls and what belongs to them; None without positives.
        show_paths: show whole paths instead of the last two parts of absolute ones.
        spreadsheet_safe: see `write_page`.
        num_shown: predictions shown per query; all K if K is smaller.
        max_pictured: queries shown with their pictures; all others, up to 20,000, are listed by name.
    """
    listed, pictured = _listed(retrieved), shown_queries(retrieved, max_pictured)
    missed = None if measured is None else measured.missed
    shared: dict[str, Any] = {
        "pictured": pictured,
        "missed": missed,
        "num_shown": num_shown,
        "show_paths": show_paths,
    }
    write_page(
        path,
        "report.html",
        title=title,
        gallery=query_gallery(retrieved, listed, **shared),
        map=query_map(retrieved, **shared),
        show_paths=show_paths,
        spreadsheet_safe=spreadsheet_safe,
        facts=facts,
        retrieved=retrieved,
        num_listed=len(listed),
        num_pictured=len(pictured),
        explanations=_explanations(retrieved, facts),
        **_measured_values(retrieved, measured),
    )


def _explanations(retrieved: Retrieved, facts: Mapping[str, str]) -> list[str]:
    """Return what the numbers beside photos are, in sentences."""
    texts = []
    if retrieved.classes is not None:
        texts.append(f"Percentages are probabilities: {retrieved.classes.meaning}.")
    if retrieved.pairs:
        texts.append(
            "Matched points agree with one relative position of two cameras; lines join them, at most 100, where a "
            "photo is enlarged."
        )
    if not retrieved.labeled:
        return texts
    if retrieved.classes is not None:
        texts.append(f"A prediction is correct if the center of its cell lies {retrieved.criterion} of the query.")
        return [*texts, "The rank of the best class with a correct center is that by score among all classes."]
    counted = "images" if retrieved.panoramas is None else "panoramas"
    changed = ", also outside of the region of the query" if retrieved.regions is not None else ""
    changed += ", before re-ranking" if "re-ranking" in facts else ""
    return [*texts, f"The rank of a correct image that was missed is by descriptors among all {counted}{changed}."]


def shown_queries(retrieved: Retrieved, count: int = _MAX_PICTURED) -> np.ndarray:
    """Select the queries of the report that have pictures, int64 (M,), in its order."""
    return _select(_listed(retrieved), retrieved, count)


def _listed(retrieved: Retrieved) -> np.ndarray:
    """Select the queries of the report, in its order."""
    return _select(_order(retrieved), retrieved, MAX_ROWS)


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
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def _measured_values(retrieved: Retrieved, measured: Measured | None) -> dict[str, Any]:
    """Return what the template shows of recalls; nothing without ground truth."""
    if measured is None:
        return {"recalls": []}
    recalls = sorted(measured.recalls, key=lambda each: each.n)
    of_all = [each for each in recalls if (each.criterion, each.queries) == (retrieved.criterion, "all")]
    published_ns = sorted({n for each in measured.published for n in each.recalls})
    return {
        "recalls": of_all,
        "chance": measured.chance,
        "curve": _curve(retrieved.measure, of_all, measured),
        "group_bars": list(_group_bars(retrieved, measured)),
        "header": ["queries", "number", *(f"{retrieved.measure}@{each.n}" for each in of_all)],
        "groups": _group_rows(retrieved, recalls),
        "published_header": ["method", "backbone", "dimensions", *(f"R@{n}" for n in published_ns), "source"],
        "published": [_published_row(each, published_ns) for each in measured.published],
        "distances": _distance_bars(retrieved),
    }


def _published_row(published: Published, ns: Sequence[int]) -> list[str]:
    percents = [f"{published.recalls[n]:.1f}" if n in published.recalls else "" for n in ns]
    source = "; ".join(text for text in (published.source, published.remark) if text)
    return [published.method, published.backbone, f"{published.dim:,}", *percents, source]


def _curve(measure: str, recalls: Sequence[Recall], measured: Measured) -> Chart:
    """Draw recall over N with its interval, chance, and published recalls that are comparable as points."""
    ns = [each.n for each in recalls]
    own = Series(
        "this encoder",
        ns,
        [each.percent for each in recalls],
        low=[each.low for each in recalls],
        high=[each.high for each in recalls],
    )
    chance = Series("chance", ns, [measured.chance[n] for n in ns], kind="reference")
    published, comparable = [], [each for each in measured.published if not each.sees_other_images]
    for each, labels in zip(comparable, _labels(comparable), strict=True):
        ns, percents = list(each.recalls), list(each.recalls.values())
        published.append(Series(f"{each.method}, {each.dim}", ns, percents, kind="points", labels=labels))
    label = f"{measure}@N of all queries, %"
    return Chart(f"{measure}@N", "N", label, [own, chance, *published], log_x=True, y_range=(0, 100))


def _labels(published: Sequence[Published]) -> list[list[str]]:
    """Return a label for the first point of each publication; "" where labels of higher recalls leave no room."""
    labels, lowest = [], np.inf
    for each in reversed(published):
        first, *others = each.recalls.values()
        has_room = lowest - first >= _LABEL_ROOM
        lowest = first if has_room else lowest
        labels.append([each.method if has_room else "", *([""] * len(others))])
    return labels[::-1]


def _group_rows(retrieved: Retrieved, recalls: Sequence[Recall]) -> list[list[Any]]:
    """Return a table of recalls: all queries by every criterion, then every group by the main one."""
    names = [(criterion, "all") for criterion in retrieved.positives]
    names += [(retrieved.criterion, name) for parts in retrieved.groupings.values() for name in parts]
    by_name: dict[tuple[str, str], list[Recall]] = {}
    for each in recalls:
        by_name.setdefault((each.criterion, each.queries), []).append(each)
    rows = []
    for criterion, queries in names:
        if found := by_name.get((criterion, queries)):
            name = f"all, {criterion}" if queries == "all" else queries
            cells = [{"text": f"{each.percent:.1f}", "detail": f"{each.low:.1f} to {each.high:.1f}"} for each in found]
            rows.append([name, f"{found[0].count:,}", *cells])
    return rows


def _group_bars(retrieved: Retrieved, measured: Measured) -> Iterator[Bars]:
    """Draw recall at the smallest N by each grouping of queries, with the number of queries below the bars."""
    first = min(measured.chance)
    by_name = {
        each.queries: each for each in measured.recalls if (each.criterion, each.n) == (retrieved.criterion, first)
    }
    unit = "km" if retrieved.great_circle else "m"
    target = "database" if retrieved.classes is None else "nearest class"
    for by, groups in retrieved.groupings.items():
        found = [by_name[name] for name in groups if name in by_name]
        labels = [shortened(each.queries) if by == "condition" else _range_text(each.queries) for each in found]
        yield Bars(
            f"{retrieved.measure}@{first} by {by}",
            _X_LABELS[by].format(target=target, unit=unit),
            f"{retrieved.measure}@{first}, %",
            labels,
            {"": [each.percent for each in found]},
            y_max=100,
            notes=[f"{each.count:,}" for each in found],
        )


def _range_text(name: str) -> str:
    """Return the numbers of a group's name: `5-10` of `5 to 10 m from the database`."""
    numbers = re.findall(r"\d+", name)
    return f"≥ {numbers[0]}" if len(numbers) == 1 else "-".join(numbers)


def _distance_bars(retrieved: Retrieved) -> Bars | None:
    """Draw how many top predictions lie how far from their query, correct and wrong; None if no distance is known."""
    distances_m, is_correct = retrieved.distances_m[:, 0], retrieved.correct[:, 0]
    bins = np.searchsorted(_EDGES_M, distances_m, side="right") - 1  # unknown ones are beyond the last bin
    counts = {
        verdict: np.bincount(bins[chosen & np.isfinite(distances_m)], minlength=len(_EDGES_M) - 1)
        for verdict, chosen in (("correct", is_correct), ("wrong", ~is_correct))
    }
    filled = np.flatnonzero(sum(counts.values()))
    if not len(filled):
        return None
    used = slice(filled[0], filled[-1] + 1)
    labels = [_meters_text(low, high) for low, high in pairwise(_EDGES_M)]
    return Bars(
        "Distance of the top prediction",
        "meters from the query",
        "queries",
        labels[used],
        {verdict: each[used].tolist() for verdict, each in counts.items()},
    )


def _meters_text(low_m: float, high_m: float) -> str:
    """Format a range of meters shortly, such as `300-1k`."""
    low, high = (f"{each / 1000:g}k" if each >= 1000 else f"{each:g}" for each in (low_m, high_m))
    return f"{low}-{high}" if np.isfinite(high_m) else f"≥ {low}"
