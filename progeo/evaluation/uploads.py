"""The file of predictions that the evaluator of Mapillary SLS reads, and its check."""

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from progeo.atomic import replacing
from progeo.engine.log import LOGGER
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue

_MIN_PREDICTIONS = 20
"""Predictions of each query that the evaluator needs for its recall@20."""


def write_upload(results: Retrieved, out: Path, name: str, *, num_queries: int) -> None:
    """Write and check `<name>.csv`, which the evaluator reads, and `<name>.zip` with it, which its server takes.

    A line has the key of a query and, separated by spaces, the keys of its predictions, best first.

    Args:
        num_queries: number of queries that the evaluator expects.

    Raises:
        ValueError: a query has fewer predictions than others, as an approximate search can leave it.
    """
    if (results.predictions < 0).any():
        raise ValueError("The evaluator needs as many predictions for each query: search exactly, or raise `probes`.")
    database, queries = image_keys(results.database), image_keys(results.queries)
    keys = np.concatenate([np.array(queries)[:, None], np.array(database)[results.predictions]], axis=1)
    file = out / f"{name}.csv"
    with replacing(file) as temporary:
        temporary.write_text("".join(f"{' '.join(line)}\n" for line in keys.tolist()), encoding="utf-8")
        check_upload(temporary, database, queries)
    with replacing(out / f"{name}.zip") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, file.name)
    if len(queries) < num_queries:
        LOGGER.warning(
            "%s lacks %s queries that cannot be read: the evaluator refuses it", file, f"{num_queries - len(queries):,}"
        )
    LOGGER.info("predictions for the evaluator: %s, and in a .zip beside it", file)


def check_upload(file: Path, database: Sequence[str], queries: Sequence[str]) -> None:
    """Check a file of predictions as the evaluator reads it.

    Args:
        database, queries: keys of the images, see `image_keys`.

    Raises:
        ValueError: a line has another number of predictions than the first, fewer than 20, or one of them twice; a
            prediction is no image of the database; or the queries are not there once each.
    """
    lines = [line.partition("#")[0].split() for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [keys for keys in lines if keys]
    known, found = {*database}, [keys[0] for keys in lines]
    for number, keys in enumerate(lines, start=1):
        predicted = keys[1:]
        if not len(lines[0]) - 1 == len({*predicted}) == len(predicted) >= _MIN_PREDICTIONS:
            raise ValueError(
                f"{file}: line {number} has {len({*predicted})} different predictions, and the first line has "
                f"{len(lines[0]) - 1}: each must have the same number, at least {_MIN_PREDICTIONS}."
            )
        if unknown := {*predicted} - known:
            raise ValueError(f"{file}: line {number} predicts {min(unknown)}, which is no image of the database.")
    if Counter(found) != Counter(queries):
        raise ValueError(
            f"{file} must have a line for each of the {len(queries):,} queries, it has {len(found):,} lines, for "
            f"{len({*found} & {*queries}):,} of them."
        )


def image_keys(catalogue: Catalogue) -> list[str]:
    """Return the keys of images, their names without folders and suffixes.

    Raises:
        ValueError: a key is not unique, or cannot be a word of the file.
    """
    keys = [Path(path).stem for path in catalogue.table["path"].to_pylist()]
    key, count = Counter(keys).most_common(1)[0]
    if count > 1:
        raise ValueError(f"The evaluator knows images by their names without folders, and {count} are called {key}.")
    if wrong := next((key for key in keys if "#" in key or len(key.split()) != 1), None):
        raise ValueError(f"The evaluator separates names by spaces and ignores what follows a #: rename {wrong!r}.")
    return keys


def check_uploadable(database: Catalogue, queries: Catalogue, ns: Sequence[int]) -> None:
    """Check that predictions for these images can be written for the evaluator.

    Args:
        ns: the Ns of recall@N; the largest is the number of predictions.

    Raises:
        ValueError: there are fewer predictions than the evaluator needs, or see `image_keys`.
    """
    if max(ns) < _MIN_PREDICTIONS:
        raise ValueError(
            f"`recall_ns` must name {_MIN_PREDICTIONS} or more, for the evaluator of the `protocol`; got "
            f"{', '.join(map(str, ns))}."
        )
    for catalogue in (database, queries):
        image_keys(catalogue)
