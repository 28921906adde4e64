"""Write the result files and log lines of an evaluation."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.metrics import Errors, Recall, average_precisions, errors_of, recall_table
from progeo.evaluation.report import write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.files import replacing, write_json


def write_results(
    results: Retrieved,
    facts: Mapping[str, str],
    out: Path,
    *,
    ns: tuple[int, ...],
    without_positive_missed: bool,
) -> dict[int, float]:
    """Write recalls.json, recalls.csv, recalls.md, predictions.csv and report.html, and log a summary.

    Args:
        results: the predictions.
        facts: encoder, data set and options of the evaluation.
        out: output folder.
        ns: the Ns of recall@N.
        without_positive_missed: count queries without any positive as missed; otherwise exclude them.

    Returns:
        Recall of all queries by the main criterion, in percent, by N.
    """
    groups = results.groups()
    table = recall_table(
        results.predictions, results.positives, groups, ns, without_positive_missed=without_positive_missed
    )
    by_rule = {
        rule: [each for each in table if (each.rule, each.queries) == (rule, "all")] for rule in results.positives
    }
    by_group = {name: [each for each in table if (each.rule, each.queries) == (results.rule, name)] for name in groups}
    if not by_group["all"]:
        raise ValueError(
            f"No query of {facts['folder']} has a right database image ({results.rule}), so all of them would be left "
            f"out: --without_positive missed counts them."
        )
    without = sum(not len(rows) for rows in results.positives[results.rule])
    facts = {
        **facts,
        "right": results.rule,
        "queries without a right image": f"{without:,}, {'missed' if without_positive_missed else 'excluded'}",
    }
    recalls = {each.n: each.percent for each in by_group["all"]}
    errors = errors_of(results.distances_m)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recalls.json", {**facts, **_summary(results, table, recalls, errors)})
    _write_table(out / "recalls.csv", table)
    with replacing(out / "recalls.md") as temporary:
        temporary.write_text(markdown_table([(facts, recalls)]), encoding="utf-8")
    _write_predictions(out / "predictions.csv", results)
    in_report = {name: rows for name, rows in {**by_rule, **by_group}.items() if rows and name != "all"}
    shown = facts if errors is None else {**facts, "first prediction": _errors_in_words(errors)}
    title = f"{facts['encoder']} on {facts['folder']}"
    write_report(out / "report.html", results, title=title, facts=shown, recalls=in_report)
    _log(facts["folder"], by_group, errors)
    LOGGER.info("report: %s", out / "report.html")
    return recalls


def write_found(results: Retrieved, facts: Mapping[str, str], out: Path) -> None:
    """Write predictions.csv and report.html of queries without ground truth.

    Args:
        results: the predictions, with descriptor distances.
        facts: encoder, data set and options of the search.
        out: output folder.
    """
    _write_predictions(out / "predictions.csv", results)
    title = f"{facts['encoder']} on {facts['folder']}"
    write_report(out / "report.html", results, title=title, facts=facts, recalls={})
    LOGGER.info("%s: what was found for %s queries, without recalls", facts["folder"], f"{len(results.queries):,}")
    LOGGER.info("report: %s", out / "report.html")


def recalls_in_words(recalls: list[Recall]) -> str:
    """Format recalls as `R@1 81.2, R@5 93.4`."""
    return ", ".join(f"R@{each.n} {each.percent:.1f}" for each in recalls)


def markdown_table(rows: list[tuple[Mapping[str, str], Mapping[int, float]]]) -> str:
    """Format facts and recalls of evaluations as a Markdown table."""
    head = ["encoder", "data", "descriptor", *(f"R@{n}" for n in rows[0][1])]
    lines = [head, ["---"] * 3 + ["---:"] * len(rows[0][1])]
    for facts, recalls in rows:
        data = facts["folder"] if facts["protocol"] == "none" else facts["protocol"]
        lines.append([facts["encoder"], data, facts["descriptor"], *(f"{recall:.1f}" for recall in recalls.values())])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _summary(
    results: Retrieved, table: list[Recall], recalls: Mapping[int, float], errors: Errors | None
) -> dict[str, Any]:
    """Collect all numbers of an evaluation for recalls.json."""
    precisions = average_precisions(results.predictions, results.positives[results.rule])
    return {
        "recalls": {f"R@{n}": percent for n, percent in recalls.items()},
        "errors": None if errors is None else dataclasses.asdict(errors),
        "mean_average_precision": None if np.isnan(precisions).all() else float(np.nanmean(precisions)),
        "table": [dataclasses.asdict(each) for each in table],
    }


def _log(folder: str, by_group: Mapping[str, list[Recall]], errors: Errors | None) -> None:
    """Log a summary of recalls and errors."""
    first = by_group["all"][0]
    LOGGER.info("%s: %s", folder, recalls_in_words(by_group["all"]))
    LOGGER.info("R@%d is %.1f to %.1f in 95 %% of samples of these queries", first.n, first.low, first.high)
    for name, rows in by_group.items():
        if rows and name != "all":
            LOGGER.info("  %s (%s queries): %s", name, f"{rows[0].count:,}", recalls_in_words(rows))
    if errors is not None:
        LOGGER.info("first prediction: %s", _errors_in_words(errors))


def _errors_in_words(errors: Errors) -> str:
    return f"half within {errors.median_m:,.1f} m, nine of ten within {errors.ninetieth_m:,.1f} m"


def _write_table(path: Path, table: list[Recall]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Recall)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, table))


def _write_predictions(path: Path, results: Retrieved) -> None:
    query_paths, database_paths = results.queries.table["path"], results.database.table["path"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        judged = ["descriptor_distance"] if results.distances is not None else ["distance_m", "right"]
        writer.writerow(["query", "rank", "database", *judged])
        for query, found in enumerate(results.predictions):
            for rank, row in enumerate(found[found >= 0]):
                judgement = _judgement(results, query, rank)
                writer.writerow([query_paths[query], rank + 1, database_paths[int(row)], *judgement])


def _judgement(results: Retrieved, query: int, rank: int) -> list[str]:
    """Format the last columns of predictions.csv: the descriptor distance, or the distance in meters and a 0 or 1."""
    if results.distances is not None:
        return [f"{results.distances[query, rank]:.4f}"]
    distance_m = results.distances_m[query, rank]
    return ["" if np.isnan(distance_m) else f"{distance_m:.2f}", str(int(results.right[query, rank]))]
