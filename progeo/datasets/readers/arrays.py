"""Ground truth of other programs, recognized by file names: NumPy arrays, lists of images, numbered images."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from progeo.datasets.readers.ground_truth import build_sides
from progeo.datasets.readers.numpy_files import integers_of, load_array
from progeo.datasets.readers.patch_netvlad import read_patch_netvlad
from progeo.datasets.readers.vpr_bench import read_vpr_bench
from progeo.places.catalogue import Catalogue


def read_arrays(folder: Path, images: Path, name: str | None = None) -> dict[str, Catalogue]:
    """Read database and queries of a dataset from a folder with its ground truth.

    The queries have a column `positives` with the database rows correct for each query, unless a radius of 25 m defines
    them.

    Args:
        folder: the files of one of `_LAYOUTS`, with any common prefix in their names.
        images: folder that the image names are relative to.
        name: prefix of the file names, required if the folder has several datasets.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files of several datasets, inconsistent files, or content other than names and numbers.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    complete = [
        (beginning, layout, files)
        for layout in _LAYOUTS
        for beginning, files in _sets(folder, layout).items()
        if name is None or beginning == name.rstrip(_SEPARATORS)
    ]
    held = [{*files.values()} for _, _, files in complete]
    sets = [each for each, own in zip(complete, held, strict=True) if not any(own < other for other in held)]
    if not sets:
        called = "" if name is None else f" of a set that is called {name}"
        raise FileNotFoundError(
            f"{folder} does not hold the ground truth{called}: it must hold "
            f"{'; or '.join(layout.what for layout in _LAYOUTS)}; their names may begin with anything."
        )
    if len(sets) > 1:
        beginnings = sorted({beginning for beginning, _, _ in sets})
        if len(beginnings) == 1:
            paths = sorted({path.name for _, _, files in sets for path in files.values()})
            raise ValueError(f"{folder} holds several ground truths of one set: {', '.join(paths)}. Keep one of them.")
        raise ValueError(f"{folder} holds the sets {', '.join(map(repr, beginnings))}: choose one with `name`.")
    _, layout, files = sets[0]
    return layout.read(files, images)


_SEPARATORS = "_.-"


@dataclass(frozen=True)
class _Layout:
    """A set of files in which ground truth is stored."""

    what: str
    """The files in words."""
    endings: Mapping[str, str]
    """Regular expression for the end of each file's name."""
    read: Callable[[Mapping[str, Path], Path], dict[str, Catalogue]]


def _sets(folder: Path, layout: _Layout) -> dict[str, dict[str, Path]]:
    """Group the files of a layout by prefix, and return the complete groups.

    Raises:
        ValueError: two files of one kind have the same prefix.
    """
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        for role, ending in layout.endings.items():
            match = re.fullmatch(rf"(.*?)[{_SEPARATORS}]*{ending}", path.name)
            if match and not path.name.startswith(".") and path.is_file():
                files = sets.setdefault(match[1], {})
                if role in files:
                    raise ValueError(f"{folder} holds {files[role].name} and {path.name}: keep one of them.")
                files[role] = path
    return {beginning: files for beginning, files in sets.items() if len(files) == len(layout.endings)}


def _read_truth(files: Mapping[str, Path], images: Path, *, of_chosen: bool = False) -> dict[str, Catalogue]:
    """Read names and the correct database rows of each query, or of the queries that a file `index` lists.

    MSLS val of GSV-Cities, MixVPR and SALAD evaluates 740 of 747 queries by such an index.

    Args:
        of_chosen: the rows are those of the listed queries, in their order; else of these or of all queries, by their
            number.
    """
    database, queries = _names(files["database"]), _names(files["queries"])
    positives = _rows(files["truth"], len(database), "database images")
    if "index" in files:
        chosen = np.concatenate([np.empty(0, np.int64), *_rows(files["index"], len(queries), "queries")]).tolist()
        if len(positives) == len(queries) and not of_chosen:
            positives = [positives[row] for row in chosen]
        queries = [queries[row] for row in chosen]
    if len(positives) != len(queries):
        raise ValueError(f"{files['truth']} has {len(positives)} rows for {len(queries)} queries.")
    return build_sides(images, {"database": database, "queries": queries}, positives=positives)


def _read_names(files: Mapping[str, Path], images: Path) -> dict[str, Catalogue]:
    """Read names without ground truth, such as those of the MSLS challenge."""
    return build_sides(images, {side: _names(file) for side, file in files.items()})


def _names(file: Path) -> list[str]:
    """Read image names from an array of text, bytes, or objects of either kind."""
    values = load_array(file).ravel().tolist()
    try:
        names = [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: a name is not in UTF-8: {error}.") from None
    wrong = [name for name in names if not (isinstance(name, str) and name)]
    if wrong or not names:
        raise ValueError(f"{file} must hold names of images, it holds {wrong[0]!r}." if wrong else f"{file} is empty.")
    if not all(map(_is_utf8, names)):
        raise ValueError(f"{file}: a name is not in UTF-8.")
    return names


def _is_utf8(name: str) -> bool:
    """Return whether a name has no halves of characters, which NumPy stores like any other number."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def _rows(file: Path, count: int, what: str) -> list[np.ndarray]:
    """Read the row numbers, each from 0 to `count` - 1, in every element or line of an array.

    Raises:
        ValueError: an element is invalid; the message has the first one.
    """
    values = load_array(file)
    is_mask = values.ndim == 2 and values.shape[1] == count
    if is_mask and count > 2 and values.dtype.kind in "iuf" and np.isin(values, (0, 1)).all():
        raise ValueError(f"{file} has only 0 and 1 for {count} {what}: save it as booleans, or as lists of rows.")
    if values.dtype.kind == "b" and not is_mask:
        raise ValueError(f"{file} holds booleans of the shape {values.shape} for {count} {what}.")
    rows = [np.flatnonzero(each) if values.dtype.kind == "b" else integers_of(each) for each in np.atleast_1d(values)]
    for number, each in enumerate(rows):
        if each is None:
            held = str(np.atleast_1d(values)[number])[:80]
            raise ValueError(f"{file} must hold rows of {what}, its element {number} holds {held}.")
        if len(each) and not (each.min() >= 0 and each.max() < count):
            worst = each.min() if each.min() < 0 else each.max()
            raise ValueError(
                f"{file} names rows beyond the {count} {what} for query {number}: {worst} is not from 0 to {count - 1}."
            )
    return [each.astype(np.int64) for each in rows if each is not None]


_NAMES = MappingProxyType(
    {"database": r"(?:dbImages|ref_image_names)\.npy", "queries": r"(?:qImages|query_image_names)\.npy"}
)
_TRUTH, _INDEX = r"(?:gt|ground_truth)(?:_\d+(?:\.\d+)?m)?\.npy", r"qIdx\.npy"
_LAYOUTS = (
    _Layout(
        "dbImages.npy, qImages.npy and gt.npy or gt_25m.npy (OpenVPRLab, GSV-Cities)",
        {**_NAMES, "truth": _TRUTH},
        _read_truth,
    ),
    _Layout("the same with qIdx.npy, which chooses queries", {**_NAMES, "truth": _TRUTH, "index": _INDEX}, _read_truth),
    _Layout(
        "dbImages.npy, qImages.npy, qIdx.npy and pIdx.npy (MSLS of GSV-Cities and SALAD)",
        {**_NAMES, "index": _INDEX, "truth": r"pIdx\.npy"},
        partial(_read_truth, of_chosen=True),
    ),
    _Layout("dbImages.npy and qImages.npy without ground truth (MSLS challenge of SALAD)", _NAMES, _read_names),
    _Layout(
        "imageNames_index.txt and imageNames_query.txt with an .npz (Patch-NetVLAD)",
        {"database": r"imageNames_index\.txt", "queries": r"imageNames_query\.txt"},
        read_patch_netvlad,
    ),
    _Layout("ground_truth_new.npy (VPR-Bench)", {"truth": r"ground_truth_new\.npy"}, read_vpr_bench),
)
