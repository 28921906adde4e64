"""Safe reading of .npy files: numbers, texts, or pickled lists of them, without executing code from pickles."""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.lib.format as npy

from progeo.printable import first_line

_MAX_VALUES = 2**22
"""Maximum number of values in all lists, or the file size if larger: a pickle can repeat a list many times."""
_MAX_UNPACKED, _UNPACKED_PER_BYTE = 2**26, 64
"""Maximum number of bytes of the arrays in an .npz file: in all, or for each byte of the file if that is more."""
_DISPATCH = pickle._Unpickler.dispatch
_EXCLUDED = b"".join(
    (
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.ADDITEMS, pickle.FROZENSET),
    )
)
"""Opcodes that lists and arrays do not need: they allocate memory by a given size, or hash endlessly nested values."""


def load_array(file: Path) -> np.ndarray:
    """Read a .npy file.

    Returns:
        An array of numbers or texts; or, for a file with pickled objects, an array of objects, each of them a number, a
        text, bytes, or a flat array with the numbers of nested lists and arrays.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a .npy file, is truncated, or holds other objects.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    content = file.read_bytes()
    try:
        return _decoded(content)
    except Exception as error:  # invalid files raise many kinds of errors
        reason = first_line(error) if content else "the file is empty"
        if isinstance(error, (KeyError, EOFError)):  # an opcode that is not admitted, or end of file
            reason = "it is truncated, or holds something else than arrays and lists of numbers and texts"
        raise ValueError(f"{file} cannot be read: {reason}. Is the download complete?") from None


def load_archive(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read arrays of an .npz file by their names, those that it has.

    Raises:
        ValueError: the file is not an .npz file, is corrupt, or holds other objects.
    """
    most = max(_MAX_UNPACKED, _UNPACKED_PER_BYTE * file.stat().st_size)
    try:
        with zipfile.ZipFile(file) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") in names]
            if (size := sum(entry.file_size for entry in found)) > most:
                raise ValueError(f"its arrays would take {size:,} bytes")
            return {entry.filename.removesuffix(".npy"): _decoded(archive.read(entry)) for entry in found}
    except Exception as error:  # invalid files raise many kinds of errors
        raise ValueError(f"{file} cannot be read: {first_line(error)}.") from None


def integers_of(value: Any) -> np.ndarray | None:
    """Flatten an element or line of `load_array` to an array of integers (N,); None if a value is not an integer."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":  # a line of a matrix of objects
        parts = [integers_of(each) for each in value]
        found = [part for part in parts if part is not None]
        return np.concatenate([np.empty(0, np.int64), *found]) if len(found) == len(parts) else None
    numbers = np.atleast_1d(np.asarray(value)).ravel()
    if numbers.dtype.kind in "iu":
        return numbers
    whole = numbers.dtype.kind == "f" and np.isfinite(numbers).all() and (numbers % 1 == 0).all()
    return numbers.astype(np.int64) if whole else None  # empty arrays often have NumPy's default, float64


def _decoded(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    if not content.startswith(npy.MAGIC_PREFIX):
        raise ValueError(f"it begins with {content[:16]!r}, which is no .npy file")
    is_first = npy.read_magic(stream) == (1, 0)
    shape, fortran, dtype = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(stream)
    if dtype.kind == "O":
        array = _ArrayUnpickler(stream).load()
        if not isinstance(array, _Array):
            raise ValueError("it holds no array")
        return _of_objects(_flattened(array.elements(), max(_MAX_VALUES, len(content)))).reshape(array.values.shape)
    if dtype.kind not in "biufcSU":  # a date, for one, may be one that NumPy cannot show
        raise ValueError(f"it holds values of the kind {dtype}, not numbers or texts")
    stored, needed = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if stored < needed:
        raise ValueError(f"it ends after {stored:,} of {needed:,} bytes")
    values = np.frombuffer(content, dtype, math.prod(shape), stream.tell()) if needed else np.empty(0, dtype)
    return _shaped(values, shape, fortran)


def _shaped(values: np.ndarray, shape: Sequence[int], fortran: bool) -> np.ndarray:
    if max(shape, default=0) > max(_MAX_VALUES, values.size):  # lines without values, which would be visited one by one
        raise ValueError(f"it holds {values.size:,} values for the shape {shape}")
    return values.reshape(shape, order="F" if fortran else "C")


class _Type:
    """Substitute for numpy.dtype, whose state in a pickle can turn it into any type."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"O8?|[biuf]\d|[SU]\d+", code):
            raise ValueError(f"it holds an array of the kind {code[:20]!r}, not of numbers or texts")
        self.dtype = np.dtype(code[0] if code[0] == "O" else code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Substitute for numpy.ndarray, which reads out of bounds if a pickle forges its shape."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if kind.dtype.kind == "O":
            if not isinstance(content, list):
                raise ValueError("it is no array of lists")
            values = _of_objects(content)
        else:
            values = np.frombuffer(_bytes(content), kind.dtype) if len(content) else np.empty(0, kind.dtype)
        self.values = _shaped(values, shape, fortran)

    def elements(self) -> list[Any]:
        return self.values.ravel().tolist()


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(_bytes(content), kind.dtype)[0]


def _bytes(content: bytes | str) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content  # pickles of Python 2 store bytes as text


def _joined(*parts: str) -> str:
    """Join the parts of a path as pathlib pickles them."""
    return parts[0] + "/".join(parts[1:]) if parts[0] == "/" else "/".join(parts)


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_ADMITTED = MappingProxyType(
    {
        **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
        **{f"{builtins}.{name}": range for builtins in ("builtins", "__builtin__") for name in ("range", "xrange")},
        "_codecs.encode": lambda text, _: _bytes(text),
        **{f"{module}.{path}": _joined for module in ("pathlib", "pathlib._local") for path in _PATHS},
    }
)


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickler for arrays and lists, based on Python's pure-Python unpickler.

    The C unpickler exhausts memory if a file has a memo index that is too high.
    """

    dispatch = {code: act for code, act in _DISPATCH.items() if code not in _EXCLUDED}  # noqa: RUF012

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ADMITTED:
            raise pickle.UnpicklingError(f"it holds {full[:80]}, not numbers alone")
        return _ADMITTED[full]


def _of_objects(values: Any) -> np.ndarray:
    return np.fromiter(values, object)  # np.array would turn lists of equal length into a matrix


def _flattened(elements: Sequence[Any], most: int) -> Iterator[Any]:
    """Yield the elements of an array of objects, each list or array flattened to one array.

    Args:
        elements: output of the unpickler.
        most: maximum number of values to visit, because lists that contain each other never end.
    """
    seen = len(elements)
    for element in elements:
        if not isinstance(element, (_Array, list, tuple, range)):
            yield element
            continue
        numbers: list[Any] = []
        arrays: list[np.ndarray] = []
        waiting: list[Any] = [element]
        while waiting:
            each = waiting.pop()
            if isinstance(each, _Array) and each.values.dtype.kind != "O":
                arrays.append(each.values.ravel())
                seen += each.values.size
            elif isinstance(each, (_Array, list, tuple, range)):
                inner = each.elements() if isinstance(each, _Array) else each
                seen += len(inner)
                if seen <= most:
                    waiting += inner
            else:
                numbers.append(each)
            if seen > most:
                raise ValueError(f"its lists hold more than {most:,} values")
        filled = [values for values in (np.array(numbers), *arrays) if len(values)]
        yield np.concatenate(filled) if filled else np.empty(0, np.int64)
