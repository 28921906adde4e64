"""Patch-NetVLAD's ground truth: a list of images for database and queries, and their positions in an .npz file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from progeo.datasets.readers.ground_truth import build_sides
from progeo.datasets.readers.numpy_files import load_archive
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import MAX_NUMBER, check_numbers
from progeo.places.positives import positives_within

_POSITIONS = {"database": "utmDb", "queries": "utmQ"}
_FOLDER = "dataset_gt_files"
_RADIUS, _USUAL_RADIUS_M = "posDistThr", 25


def read_patch_netvlad(files: Mapping[str, Path], images: Path) -> dict[str, Catalogue]:
    """Read database and queries with the given positions, without a zone.

    If the distance threshold is not 25, as for the frames of Nordland, queries get their positives within that
    threshold in a column `positives`.

    Args:
        files: `database` and `queries`, NAME_imageNames_index.txt and NAME_imageNames_query.txt. NAME.npz, or the only
            .npz file whose name starts with NAME, is next to them or in dataset_gt_files next to their folder.
        images: folder that the names are relative to.

    Raises:
        FileNotFoundError: there is no .npz file, or several match.
        ValueError: files are corrupt or inconsistent.
    """
    names = {side: _names(file) for side, file in files.items()}
    positions = _positions_file(files["database"])
    arrays = load_archive(positions, {*_POSITIONS.values(), _RADIUS})
    if missing := [key for key in _POSITIONS.values() if key not in arrays]:
        raise ValueError(f"{positions} must hold numbers utmQ and utmDb, it has no {missing[0]}.")
    if any(values.dtype.kind not in "biuf" for values in arrays.values()):
        raise ValueError(f"{positions} must hold numbers utmQ, utmDb and {_RADIUS}.")
    utm = {side: arrays[key].astype(np.float64) for side, key in _POSITIONS.items()}
    radius = float(next(iter(arrays.get(_RADIUS, np.array([])).ravel()), _USUAL_RADIUS_M))
    for side, values in utm.items():
        if values.shape == (2, len(names[side])) and len(names[side]) != 2:
            utm[side] = values.T
        if utm[side].shape != (len(names[side]), 2) or not np.isfinite(utm[side]).all():
            raise ValueError(
                f"{positions} must hold east and north of the {len(names[side])} images in {files[side].name}, it has "
                f"an array of the shape {values.shape}."
            )
        check_numbers(lambda row: f"{positions}: row {row + 1}", east=utm[side][:, 0], north=utm[side][:, 1])
    positives = None
    if not 0 < radius <= MAX_NUMBER:
        raise ValueError(f"{positions}: {_RADIUS} must be a positive number of meters, got {radius}.")
    if radius != _USUAL_RADIUS_M:
        positives = positives_within(utm["database"], utm["queries"], radius)
    return build_sides(images, names, utm_m=utm, positives=positives)


def _names(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}.") from None
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        raise ValueError(f"{file} must name an image in each line, line {[*names, ''].index('') + 1} is empty.")
    return names


def _positions_file(listing: Path) -> Path:
    name = listing.name.removesuffix("imageNames_index.txt").rstrip("_-.")
    folders = (listing.parent, listing.parent.parent / _FOLDER)
    found = [path for folder in folders for path in sorted(folder.glob("*.npz")) if path.stem.startswith(name)]
    exact = [path for path in found if path.stem == name]
    if len(exact or found) != 1:
        what = f"are {', '.join(path.name for path in found)}" if found else "is none"
        raise FileNotFoundError(
            f"{listing} needs one file {name}*.npz with utmQ and utmDb, in {folders[0]} or {folders[1]}; there {what}."
        )
    return (exact or found)[0]
