"""The files and the lines that an evaluation leaves."""

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.measures import Recall, average_precisions, errors_of, recall_table
from progeo.evaluation.recall import right_predictions
from progeo.evaluation.report import write_report
from progeo.files import replacing, write_json
from progeo.places.catalogue import Catalogue, positions_m


@dataclass(frozen=True)
class Results:
    """What was found for Q queries."""

    database: Catalogue
    queries: Catalogue
    predictions: np.ndarray
    """Database rows of each query, best first, int64 (Q, K); -1 where there is none."""
    positives: Mapping[str, list[np.ndarray]]
    """Right database rows of each query, by the name of a rule; the first rule counts most."""
    facts: Mapping[str, str]
    """What was evaluated on what."""

    @property
    def rule(self) -> str:
        """When a prediction is right."""
        return next(iter(self.positives))

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is right by the first rule, bool (Q, K)."""
        return right_predictions(self.predictions, self.positives[self.rule])

    @cached_property
    def distances_m(self) -> np.ndarray:
        """Metres between each query and its predictions (Q, K), NaN where unknown."""
        database_m, queries_m = positions_m(self.database, self.queries)
        distances_m = np.linalg.norm(database_m[self.predictions] - queries_m[:, None], axis=2)
        return np.where(self.predictions < 0, np.nan, distances_m)


def write_results(
    results: Results,
    out: Path,
    *,
    groups: Mapping[str, np.ndarray],
    ns: tuple[int, ...],
    without_positive_missed: bool,
) -> None:
    """Write recalls.json, recalls.csv, recalls.md, predictions.csv and report.html, and log what matters most.

    Args:
        results: what was found.
        out: folder to write to.
        groups: rows of the queries that recalls are taken of besides all of them.
        ns: the Ns of recall@N.
        without_positive_missed: queries without any right database image count as missed.
    """
    everything = {"all": np.arange(len(results.queries)), **groups}
    table = recall_table(
        results.predictions, results.positives, everything, ns, without_positive_missed=without_positive_missed
    )
    first = [each for each in table if each.rule == results.rule]
    by_group = {name: [each for each in first if each.queries == name] for name in everything}
    by_group = {f"{name} ({rows[0].count:,} queries)": rows for name, rows in by_group.items() if rows}
    without = sum(not len(rows) for rows in results.positives[results.rule])
    errors = errors_of(results.distances_m)
    precisions = average_precisions(results.predictions, results.positives[results.rule])
    facts = {
        **results.facts,
        "right": results.rule,
        "queries without a right image": f"{without:,}, {'missed' if without_positive_missed else 'left out'}",
    }
    recalls = {each.n: each.percent for each in first if each.queries == "all"}
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        **facts,
        "recalls": {f"R@{n}": percent for n, percent in recalls.items()},
        "errors": None if errors is None else dataclasses.asdict(errors),
        "mean_average_precision": None if np.isnan(precisions).all() else float(np.nanmean(precisions)),
        "table": [dataclasses.asdict(each) for each in table],
    }
    write_json(out / "recalls.json", summary)
    _write_table(out / "recalls.csv", table)
    with replacing(out / "recalls.md") as temporary:
        temporary.write_text(markdown_table([(facts, recalls)]), encoding="utf-8")
    _write_predictions(out / "predictions.csv", results)
    write_report(
        out / "report.html",
        title=f"{facts['encoder']} on {facts['folder']}",
        facts=facts | {name: recalls_in_words(rows) for name, rows in by_group.items()},
        recalls=recalls,
        query_paths=[results.queries.path(row) for row in range(len(results.queries))],
        database_paths=[results.database.path(row) for row in range(len(results.database))],
        predictions=results.predictions,
        right=results.right,
        rule="was given with the query" if results.rule == "as given" else f"lies {results.rule} of the query",
        distances_m=results.distances_m,
    )
    (_, overall), *others = by_group.items()
    LOGGER.info("%s: %s", facts["folder"], recalls_in_words(overall))
    LOGGER.info("R@%d is %.1f to %.1f in 95 %% of samples of these queries", ns[0], overall[0].low, overall[0].high)
    for name, rows in others:
        LOGGER.info("  %s: %s", name, recalls_in_words(rows))
    if errors is not None:
        LOGGER.info("first prediction: half within %.1f m, 90 %% within %.1f m", errors.median_m, errors.ninetieth_m)
    LOGGER.info("report: %s", out / "report.html")


def recalls_in_words(recalls: list[Recall]) -> str:
    """Recalls as `R@1 81.2, R@5 93.4`."""
    return ", ".join(f"R@{each.n} {each.percent:.1f}" for each in recalls)


def markdown_table(rows: list[tuple[Mapping[str, str], Mapping[int, float]]]) -> str:
    """Facts and recalls of evaluations as a table for a paper."""
    head = ["encoder", "data", "descriptor", *(f"R@{n}" for n in rows[0][1])]
    lines = [head, ["---"] * 3 + ["---:"] * len(rows[0][1])]
    for facts, recalls in rows:
        data = facts["folder"] if facts["protocol"] == "none" else facts["protocol"]
        lines.append([facts["encoder"], data, facts["descriptor"], *(f"{recall:.1f}" for recall in recalls.values())])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _write_table(path: Path, table: list[Recall]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Recall)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, table))


def _write_predictions(path: Path, results: Results) -> None:
    query_paths, database_paths = results.queries.table["path"], results.database.table["path"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["query", "rank", "database", "distance_m", "right"])
        for query, found in enumerate(results.predictions):
            for rank, row in enumerate(found[found >= 0]):
                distance_m = results.distances_m[query, rank]
                writer.writerow(
                    [
                        query_paths[query],
                        rank + 1,
                        database_paths[int(row)],
                        "" if np.isnan(distance_m) else f"{distance_m:.2f}",
                        int(results.right[query, rank]),
                    ]
                )
