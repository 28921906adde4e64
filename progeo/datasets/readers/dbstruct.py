"""NetVLAD's ground truth: dbStruct .mat files of Pittsburgh and Tokyo, in MATLAB v5 (scipy) and v7.3 (HDF5) format."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import scipy.io

from progeo.datasets.readers.ground_truth import build_side
from progeo.files import each_file
from progeo.image_files import EXTENSIONS
from progeo.places.catalogue import Catalogue
from progeo.places.paths import portable_names

_CUT_OUT = re.compile(r"(?<=\d)_pitch\d+_yaw\d+$|(?<=^.{22})_\d+_\d+$")
"""Suffix of a view's name after its panorama's: 000042_pitch1_yaw3 in Pittsburgh, <22 letters>_012_330 in Tokyo."""
_SIDES = {
    "database": ("dbImageFns", "utmDb", "dbTimeStamp"),
    "queries": ("qImageFns", "utmQ", "qTimeStamp"),
}


def read_dbstruct(file: Path, images: Path, query_images: Path | None = None) -> dict[str, Catalogue]:
    """Read database and queries of a dbStruct, with a column `panorama` naming the panorama that an image is a view of.

    Time stamps, if present as in Tokyo TM, are read into a column `time`.

    Args:
        file: such as pitts30k_test.mat or tokyo247.mat.
        images: folder that the names of database images are relative to.
        query_images: folder that the names of queries are relative to; None uses `images`.

    Raises:
        FileNotFoundError: the file or images do not exist.
        ValueError: the file has no dbStruct, or its fields are inconsistent.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    fields = _fields(file)
    folders = {"database": images, "queries": query_images or images}
    return {side: _catalogue(fields, file, side, folders[side]) for side in _SIDES}


def _catalogue(fields: Mapping[str, Any], file: Path, side: str, folder: Path) -> Catalogue:
    names_field, utm_field, time_field = _SIDES[side]
    for name in (names_field, utm_field):
        if name not in fields:
            raise ValueError(f"{file} has no field {name}; its fields are {', '.join(sorted(fields))}.")
    names = [name for name in np.ravel(fields[names_field]).tolist() if isinstance(name, str)]
    if not names or len(names) != np.size(fields[names_field]):
        raise ValueError(f"{file}: {names_field} must hold the names of images; the file may be broken.")
    names = portable_names(pa.array(names, pa.large_string()), folder).to_pylist()
    try:
        utm = np.asarray(fields[utm_field], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{file}: {utm_field} must hold numbers; the file may be broken.") from None
    if len(names) == 1:
        utm = utm.reshape(-1, 1)
    if utm.shape == (len(names), 2) and len(names) != 2:
        utm = utm.T
    if utm.shape != (2, len(names)):
        raise ValueError(f"{file}: {utm_field} must be 2 x {len(names)}, as {names_field}, got {utm.shape}.")
    columns = {"panorama": pa.array([_CUT_OUT.sub("", Path(name).stem) for name in names])}
    if time_field in fields:
        columns["time"] = pa.array([f"{stamp:.15g}" for stamp in np.asarray(fields[time_field], float).ravel()])
    return build_side(folder, _present(names, folder), utm.T, **columns)


def _present(names: list[str], folder: Path) -> list[str]:
    """Correct the extensions of names to those on disk: Tokyo's names end in .jpg although its files are .png."""

    def find(name: str) -> str | None:
        stem = name.rsplit(".", 1)[0]
        return next((each for each in (name, *(stem + end for end in EXTENSIONS)) if (folder / each).is_file()), None)

    found = list(each_file(find, names, total=len(names), description=f"looking for the images of {folder}"))
    missing = [name for name, present in zip(names, found, strict=True) if present is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images are not in {folder}, the first is {missing[0]}."
        )
    return [name for name in found if name is not None]


def _fields(file: Path) -> dict[str, Any]:
    try:
        content = _hdf5_content(file) if h5py.is_hdf5(file) else scipy.io.loadmat(file, simplify_cells=True)
    except Exception as error:  # both libraries raise many kinds of errors for truncated or other files
        raise ValueError(f"{file} is no .mat file, or a truncated one: {error}.") from None
    fields = content.get("dbStruct")
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds no dbStruct; it holds {', '.join(name for name in content if name[0] != '_')}.")
    return {name: [value] if isinstance(value, str) else value for name, value in fields.items()}


def _hdf5_content(file: Path) -> dict[str, Any]:
    """Read an HDF5 file into what scipy returns for older files: all names, and the fields of a dbStruct."""
    with h5py.File(file) as content:
        struct = content.get("dbStruct")
        is_struct = isinstance(struct, h5py.Group)
        fields = {name: _hdf5_value(content, struct[name]) for name in struct} if is_struct else None
        return {**dict.fromkeys(content), **({"dbStruct": fields} if is_struct else {})}


def _hdf5_value(content: h5py.File, dataset: h5py.Dataset) -> Any:
    """Convert a dataset to a number, a matrix in MATLAB's orientation, a text or a list of texts."""
    values = dataset[()]
    if values.dtype == h5py.ref_dtype:
        return [_text(content[reference][()]) for reference in values.ravel()]
    return _text(values) if dataset.attrs.get("MATLAB_class") == b"char" else values.T


def _text(codes: np.ndarray) -> str:
    return "".join(map(chr, codes.ravel()))
