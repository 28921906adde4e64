"""Ground truth as NumPy arrays, for sets without coordinates: dbImages.npy, qImages.npy and gt.npy."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import pyarrow as pa

from progeo.places.catalogue import Catalogue

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def read_arrays(folder: Path, images: Path) -> dict[str, Catalogue]:
    """Read database and queries; those have a column `positives`, the right database rows of each.

    Args:
        folder: holds one file each that ends in dbImages.npy, qImages.npy and gt.npy.
        images: folder that the names in them are relative to.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: arrays that do not fit together, or hold anything but names and numbers.
    """
    database, queries, truth = (_load(_file(folder, ending)) for ending in ("dbImages.npy", "qImages.npy", "gt.npy"))
    if len(truth) != len(queries):
        raise ValueError(f"{folder}: gt.npy has {len(truth)} rows for {len(queries)} queries.")
    positives = [np.atleast_1d(np.asarray(rows, np.int64)).ravel() for rows in truth]
    for number, rows in enumerate(positives):
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(database)):
            raise ValueError(
                f"{folder}: gt.npy names rows beyond the {len(database)} database images for query {number}."
            )
    column = pa.array([np.unique(rows) for rows in positives], pa.list_(pa.int64()))
    return {
        "database": _catalogue(database, images),
        "queries": _catalogue(queries, images, positives=column),
    }


def _catalogue(names: np.ndarray, images: Path, **columns: pa.Array) -> Catalogue:
    count = len(names)
    nowhere = {name: np.full(count, np.nan) for name in ("east", "north")}
    paths = pa.array([str(name) for name in names.tolist()], pa.large_string())
    heading = np.full(count, np.nan)
    return Catalogue(
        images, pa.table({"path": paths, **nowhere, "zone": np.zeros(count, np.int8), "heading": heading, **columns})
    )


def _file(folder: Path, ending: str) -> Path:
    found = sorted(folder.glob(f"*{ending}"))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} must hold one file that ends in {ending}, it holds {len(found)}.")
    return found[0]


def _load(file: Path) -> np.ndarray:
    """Load an array of numbers, of texts, or of lists of numbers; those are pickled, and nothing else is let in."""
    with file.open("rb") as stream:
        try:
            return np.load(stream, allow_pickle=False)
        except ValueError:
            stream.seek(0)
        try:
            is_first = npy.read_magic(stream) == (1, 0)
            shape, _, _ = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(stream)
            values = _NumbersOnly(stream).load()
        except (ValueError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from None
    return np.asarray(values, dtype=object).reshape(shape)


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not numbers alone")
        return super().find_class(module, name)
