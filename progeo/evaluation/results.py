"""Write the result files and log lines of an evaluation."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.classification import ClassScores
from progeo.evaluation.metrics import Errors, Recall, average_precisions, chance_recalls, errors_of, recall_table
from progeo.evaluation.missed import Missed
from progeo.evaluation.protocols import Published
from progeo.evaluation.report import Measured, write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.files import write_csv, write_json, write_text
from progeo.pages.page import shown_path
from progeo.places.catalogue import Catalogue
from progeo.places.distances import distance_text
from progeo.places.geographic import degrees_of
from progeo.printable import markdown_table

_SHOWN = ("prior", "re-ranking")
"""Facts that recalls.csv and recalls.md have a column of, if there are any: recalls without them are not comparable."""
_CLASS_COLUMNS = ("class", "east", "north", "latitude", "longitude", "probability")
"""Columns of predictions.csv for classes, in place of `database`."""


def write_results(
    results: Retrieved,
    facts: Mapping[str, str],
    out: Path,
    *,
    ns: tuple[int, ...],
    without_positive_missed: bool,
    missed: Missed | None = None,
    published: Sequence[Published] = (),
    spreadsheet_safe: bool = False,
    show_paths: bool = False,
) -> dict[int, float]:
    """Write recalls.json, recalls.csv, recalls.md, predictions.csv and report.html, and log a summary.

    Args:
        facts: encoder, data set and options of the evaluation.
        ns: the Ns of recall@N.
        without_positive_missed: count queries without any positive as missed; otherwise exclude them.
        missed: for the report, the best correct images or classes of failed queries.
        published: for the report, published recalls of this protocol.
        spreadsheet_safe: see `write_csv`.
        show_paths: show whole paths in the report.

    Returns:
        Recall of all queries by the main criterion, in percent, by N.
    """
    groups, main = results.groups(), results.criterion
    table = recall_table(
        results.predictions, results.positives, groups, ns, without_positive_missed=without_positive_missed
    )
    by_group = {name: [each for each in table if (each.criterion, each.queries) == (main, name)] for name in groups}
    if not by_group["all"]:
        raise ValueError(
            f"No query of {facts['folder']} has a positive ({main}), so all of them would be excluded: set "
            f"`without_positive` to missed to count them."
        )
    without = sum(not len(rows) for rows in results.positives[main])
    handling = "missed" if without_positive_missed else "excluded"
    facts = {**facts, "criterion": main, "queries without a positive": f"{without:,}, {handling}"}
    recalls, measure = {each.n: each.percent for each in by_group["all"]}, results.measure
    errors, chance = errors_of(results.distances_m), _chance(results, ns, without_positive_missed)
    error_text = "" if errors is None else _format_errors(errors, results)
    write_json(out / "recalls.json", {**facts, **_summary(results, table, recalls, chance, errors)})
    fields = [field.name for field in dataclasses.fields(Recall)]
    how = {name: facts[name] for name in _SHOWN if name in facts}
    rows = [[*dataclasses.astuple(each), f"{measure}@{each.n}", *how.values()] for each in table]
    write_csv(out / "recalls.csv", [[*fields, "measure", *how], *rows], spreadsheet_safe=spreadsheet_safe)
    write_text(out / "recalls.md", _recalls_as_markdown(facts, recalls, measure))
    write_csv(out / "predictions.csv", _predictions(results), spreadsheet_safe=spreadsheet_safe)
    _write_report(
        results,
        {**facts, "error of the top prediction": error_text} if error_text else facts,
        out,
        show_paths=show_paths,
        spreadsheet_safe=spreadsheet_safe,
        measured=Measured(table, chance, published, missed),
    )
    _log(facts["folder"], by_group, error_text, measure)
    LOGGER.info("report: %s", out / "report.html")
    return recalls


def write_unlabeled_results(
    results: Retrieved, facts: Mapping[str, str], out: Path, *, spreadsheet_safe: bool = False, show_paths: bool = False
) -> None:
    """Write predictions.csv and report.html of queries without ground truth.

    Args:
        results: the predictions, with descriptor distances.
        facts: encoder, data set and options of the search.
        out: output folder.
        spreadsheet_safe: see `write_csv`.
        show_paths: show whole paths in the report.
    """
    write_csv(out / "predictions.csv", _predictions(results), spreadsheet_safe=spreadsheet_safe)
    _write_report(results, facts, out, show_paths=show_paths, spreadsheet_safe=spreadsheet_safe)
    LOGGER.info("%s: predictions for %s queries, without recalls", facts["folder"], f"{len(results.queries):,}")
    LOGGER.info("report: %s", out / "report.html")


def _write_report(
    results: Retrieved,
    facts: Mapping[str, str],
    out: Path,
    *,
    show_paths: bool,
    spreadsheet_safe: bool,
    measured: Measured | None = None,
) -> None:
    title = " on ".join(shown_path(facts[name], show_paths) for name in ("encoder", "folder"))
    write_report(
        out / "report.html",
        results,
        title=title,
        facts=facts,
        measured=measured,
        show_paths=show_paths,
        spreadsheet_safe=spreadsheet_safe,
    )


def _chance(results: Retrieved, ns: Sequence[int], without_positive_missed: bool) -> dict[int, float]:
    """Compute the recall of random retrieval, by N, in percent; of panoramas if each counts as one prediction.

    Where queries are searched in regions, it is that of images drawn from them.
    """
    given = results.positives[results.criterion]
    rows = [query for query, positives in enumerate(given) if without_positive_missed or len(positives)]
    names = np.arange(len(results.database)) if results.panoramas is None else results.panoramas
    everything = len(np.unique(names))

    def counts(query: int) -> tuple[int, int]:
        if results.regions is None:
            return len(np.unique(names[given[query]])), everything
        region = results.regions.rows(query)
        return len(np.unique(names[np.intersect1d(given[query], region)])), len(np.unique(names[region]))

    num_positives, num_images = np.array([counts(query) for query in rows]).T
    return chance_recalls(num_positives, num_images, ns)


def _recalls_as_markdown(facts: Mapping[str, str], recalls: Mapping[int, float], measure: str) -> str:
    data = facts["folder"] if facts["protocol"] == "none" else facts["protocol"]
    texts = {"encoder": facts["encoder"], "data": data, "descriptor": facts["descriptor"]}
    texts |= {name: facts[name] for name in _SHOWN if name in facts}
    percents = {f"{measure}@{n}": f"{recall:.1f}" for n, recall in recalls.items()}
    return markdown_table([[*texts, *percents], [*texts.values(), *percents.values()]], num_texts=len(texts))


def _summary(
    results: Retrieved,
    table: list[Recall],
    recalls: Mapping[int, float],
    chance: Mapping[int, float],
    errors: Errors | None,
) -> dict[str, Any]:
    """Collect all numbers of an evaluation for recalls.json."""
    precisions = average_precisions(results.predictions, results.positives[results.criterion])
    return {
        "recalls": {f"{results.measure}@{n}": percent for n, percent in recalls.items()},
        "chance": {f"{results.measure}@{n}": percent for n, percent in chance.items()},
        "errors": None if errors is None else dataclasses.asdict(errors),
        "mean_average_precision": None if np.isnan(precisions).all() else float(np.nanmean(precisions)),
        "table": [dataclasses.asdict(each) for each in table],
    }


def _log(folder: str, by_group: Mapping[str, list[Recall]], error_text: str, measure: str) -> None:
    """Log a summary of recalls and errors."""
    first = by_group["all"][0]
    LOGGER.info("%s: %s", folder, _format_recalls(by_group["all"], measure))
    interval = (measure, first.n, first.low, first.high)
    LOGGER.info("95 %% confidence interval of %s@%d over these queries: %.1f to %.1f", *interval)
    for name, rows in by_group.items():
        if rows and name != "all":
            LOGGER.info("  %s (%s queries): %s", name, f"{rows[0].count:,}", _format_recalls(rows, measure))
    if error_text:
        LOGGER.info("error of the top prediction: %s", error_text)


def _format_recalls(recalls: list[Recall], measure: str) -> str:
    return ", ".join(f"{measure}@{each.n} {each.percent:.1f}" for each in recalls)


def _format_errors(errors: Errors, results: Retrieved) -> str:
    num_found = int((results.predictions[:, 0] >= 0).sum())
    of_found = "" if num_found == len(results.queries) else f", of the {num_found:,} queries with a prediction"
    return f"median {distance_text(errors.median_m)}, 90th percentile {distance_text(errors.ninetieth_m)}{of_found}"


def _predictions(results: Retrieved) -> Iterator[Sequence[Any]]:
    """Yield the rows of predictions.csv: with ground truth distances in meters and a 0 or 1; descriptor distances."""
    query_paths, names = results.queries.table["path"], results.database.table["path"]
    judged = ["distance_m", "correct"] if results.labeled else []
    judged += [] if results.distances is None else ["descriptor_distance"]
    classes = None if results.classes is None else _class_columns(results.classes, results.database)
    yield ["query", "rank", *(["database"] if classes is None else _CLASS_COLUMNS), *judged]
    for query, rank in np.argwhere(results.predictions >= 0).tolist():
        row = int(results.predictions[query, rank])
        of_class = [] if classes is None else classes(query, rank)
        yield [query_paths[query], rank + 1, names[row], *of_class, *_judgment(results, query, rank)]


def _class_columns(classes: ClassScores, centers: Catalogue) -> Callable[[int, int], list[str]]:
    """Return a function of query and rank that formats position and probability of a class for predictions.csv."""
    latitude, longitude = degrees_of(centers)
    columns = [(centers.east, ".1f"), (centers.north, ".1f"), (latitude, ".7f"), (longitude, ".7f")]

    def texts(query: int, rank: int) -> list[str]:
        row = int(classes.rows[query, rank])
        position = ["" if np.isnan(values[row]) else format(values[row], digits) for values, digits in columns]
        return [*position, f"{classes.probabilities[query, rank]:.4f}"]

    return texts


def _judgment(results: Retrieved, query: int, rank: int) -> list[str]:
    """Format the last columns of predictions.csv."""
    texts = [] if results.distances is None else [f"{results.distances[query, rank]:.4f}"]
    if not results.labeled:
        return texts
    distance_m = results.distances_m[query, rank]
    return ["" if np.isnan(distance_m) else f"{distance_m:.2f}", str(int(results.correct[query, rank])), *texts]
