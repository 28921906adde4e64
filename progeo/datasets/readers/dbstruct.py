"""NetVLAD's ground truth: dbStruct .mat files of Pittsburgh and Tokyo, in MATLAB v5 and v7.3 format."""

import re
from pathlib import Path

import pyarrow as pa

from progeo.datasets.matlab_process import Struct, read_struct
from progeo.datasets.readers.ground_truth import build_side
from progeo.files import each_file, is_file
from progeo.image_files import EXTENSIONS
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import check_numbers
from progeo.places.folders import utf8_paths
from progeo.places.paths import portable_names

_CUT_OUT = re.compile(r"(?<=\d)_pitch\d+_yaw\d+$|(?<=^.{22})_\d+_\d+$")
"""Suffix of a view's name after its panorama's: 000042_pitch1_yaw3 in Pittsburgh, <22 letters>_012_330 in Tokyo."""
_LONGEST = 200
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
        ValueError: the file is damaged or has no dbStruct, or its fields are inconsistent.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    struct = read_struct(file, "dbStruct")
    folders = {"database": images, "queries": query_images or images}
    return {side: _catalogue(struct, file, side, folders[side]) for side in _SIDES}


def _catalogue(struct: Struct, file: Path, side: str, folder: Path) -> Catalogue:
    names_field, utm_field, time_field = _SIDES[side]
    for name in (names_field, utm_field):
        if name not in struct.names:
            raise ValueError(f"{file} has no field {name}; its fields are {', '.join(struct.names)}.")
    if not struct.texts.get(names_field):
        raise ValueError(f"{file}: {names_field} must hold the names of images; the file may be broken.")
    names = portable_names(utf8_paths(struct.texts[names_field], folder), folder).to_pylist()
    count = len(names)
    utm, times = (struct.numbers.get(name) for name in (utm_field, time_field))
    if utm is None or (times is None and time_field in struct.names):
        name = utm_field if utm is None else time_field
        raise ValueError(f"{file}: {name} must hold numbers; the file may be broken.")
    if count == 1:
        utm = utm.reshape(-1, 1)
    if utm.shape == (count, 2) and count != 2:
        utm = utm.T
    if utm.shape != (2, count):
        raise ValueError(f"{file}: {utm_field} must be 2 x {count}, as {names_field}, got {utm.shape}.")
    columns = {"panorama": pa.array([_CUT_OUT.sub("", Path(name).stem) for name in names])}
    if times is not None:
        if times.size != count:
            raise ValueError(f"{file}: {time_field} must hold {count} numbers, as {names_field}, got {times.size}.")
        columns["time"] = pa.array([f"{stamp:.15g}" for stamp in times.ravel()])
    check_numbers(lambda row: f"{file}: {names[row]}", east=utm[0], north=utm[1])
    return build_side(folder, _present(file, names, folder), utm.T, **columns)


def _present(file: Path, names: list[str], folder: Path) -> list[str]:
    """Correct the extensions of names to those on disk: Tokyo's names end in .jpg although its files are .png."""

    def find(name: str) -> str | None:
        stem = name.rsplit(".", 1)[0]
        return next((each for each in (name, *(stem + end for end in EXTENSIONS)) if is_file(folder / each)), None)

    found = list(each_file(find, names, total=len(names), description=f"looking for the images of {folder}"))
    missing = [name for name, present in zip(names, found, strict=True) if present is None]
    if missing:
        raise FileNotFoundError(
            f"{file}: {len(missing)} of {len(names)} images are not in {folder}, the first is {missing[0][:_LONGEST]}."
        )
    return [name for name in found if name is not None]
