"""Ground truth as NumPy arrays, for sets without coordinates: dbImages.npy, qImages.npy and gt.npy."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import pyarrow as pa

from progeo.places.catalogue import Catalogue


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
    if not (len(database) and len(queries)):
        raise ValueError(f"{folder}: there are {len(database)} database images and {len(queries)} queries.")
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
    """Load an array of numbers, of texts, or of lists of numbers: those are pickled, and read without unpickling."""
    with file.open("rb") as stream:
        try:
            return np.load(stream, allow_pickle=False)
        except ValueError:
            stream.seek(0)
        try:
            is_first = npy.read_magic(stream) == (1, 0)
            (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(stream)
            values = _Recorder(stream).load()
            rows = [_integers(row) for row in _elements(values)]
        except (
            ValueError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
            pickle.UnpicklingError,
            EOFError,
        ) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from None
    found = np.empty(len(rows), dtype=object)
    found[:] = rows
    return found


class _Recorder(pickle.Unpickler):
    """Note what a pickle of arrays says, without ever calling what it names."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in _RECORDED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not numbers alone")
        return _RECORDED[name]


class _Dtype:
    def __init__(self, code: str, *_: Any) -> None:
        self.code = str(code)
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = str(state[1])


class _Array:
    def __init__(self, *_: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state


class _Scalar:
    def __init__(self, dtype: _Dtype, content: bytes) -> None:
        self.dtype, self.content = dtype, content


_RECORDED: dict[str, type] = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Dtype, "scalar": _Scalar}


def _elements(array: Any) -> list:
    """The elements of an array of objects."""
    if not (isinstance(array, _Array) and len(array.state) == 5 and isinstance(array.state[4], list)):
        raise ValueError("it is no array of lists")
    return array.state[4]


def _integers(value: Any) -> list[int]:
    """The numbers of one query: a number, a list, or an array of numbers or of lists."""
    if isinstance(value, int):
        return [value]
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _integers(each)]
    if isinstance(value, _Scalar):
        return _decoded(value.dtype, value.content)
    if isinstance(value, _Array) and len(value.state) == 5:
        content = value.state[4]
        return _integers(content) if isinstance(content, list) else _decoded(value.state[2], content)
    raise ValueError(f"it holds {type(value).__name__}, not numbers alone")


def _decoded(dtype: _Dtype, content: bytes) -> list[int]:
    if not (isinstance(dtype, _Dtype) and re.fullmatch("[iu][1248]", dtype.code) and dtype.order in "<>|="):
        raise ValueError("it holds an array of something else than integers")
    return np.frombuffer(content, np.dtype(dtype.order.replace("|", "=") + dtype.code)).tolist()
