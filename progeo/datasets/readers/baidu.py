"""Baidu Mall (Sun et al., CVPR 2017) as downloaded: folders of photos, and of their cameras in files of text."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.datasets.readers.ground_truth import build_side, build_sides
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import MAX_NUMBER
from progeo.places.paths import find_paths
from progeo.places.positives import positives_within

_RADIUS_M, _ANGLE_DEG = 10.0, 20.0
_SIDES = {"database": "training", "queries": "query"}
_NUM_LINES = 9
"""Of the file of a camera."""


def read_baidu(folder: Path) -> dict[str, Catalogue]:
    """Read the database and the queries of Baidu Mall, without positions, as those of the mall are in space.

    The positives of `queries` are within 10 m in space, as AnyLoc's published recalls count them. Those of
    `queries_angle` also differ by less than 20 degrees in the mean of their three Euler angles (z-y-x, differences not
    wrapped at 360 degrees), as the loader of AnyLoc can count them.

    Args:
        folder: holds training_images_undistort and query_images_undistort, and a file .camera for each image in
            training_gt and query_gt.

    Raises:
        FileNotFoundError: a folder, or the camera of an image, does not exist.
        ValueError: a camera cannot be read.
    """
    names = {side: _image_names(folder, f"{part}_images_undistort") for side, part in _SIDES.items()}
    cameras = {
        side: np.array([_camera(folder / f"{part}_gt" / f"{Path(name).stem}.camera") for name in names[side]])
        for side, part in _SIDES.items()
    }
    near = positives_within(cameras["database"][:, :3], cameras["queries"][:, :3], _RADIUS_M)
    turns = [
        np.abs(cameras["database"][rows, 3:] - camera[3:]).mean(axis=1)
        for rows, camera in zip(near, cameras["queries"], strict=True)
    ]
    alike = [rows[angles < _ANGLE_DEG] for rows, angles in zip(near, turns, strict=True)]
    column = pa.array(alike, pa.list_(pa.int64()))
    return {
        **build_sides(folder, names, positives=near),
        "queries_angle": build_side(folder, names["queries"], positives=column),
    }


def _image_names(folder: Path, part: str) -> list[str]:
    return [f"{part}/{name}" for batch in find_paths(folder / part).batches for name in batch.to_pylist()]


def _camera(file: Path) -> tuple[float, ...]:
    """Read x, y, z in meters and the Euler angles z-y-x in degrees of a camera.

    Of the nine lines, the rotation is in lines 5 to 7, the position in line 8.
    """
    from scipy.spatial.transform import Rotation  # commands that read other data sets start without it

    if not file.is_file():
        raise FileNotFoundError(f"There is no camera {file}: each image needs one of its name.")
    try:
        lines = [[float(number) for number in line.split()] for line in file.read_text(encoding="utf-8").splitlines()]
        if len(lines) != _NUM_LINES:
            raise ValueError(f"it has {len(lines)} lines, not {_NUM_LINES}")
        position, matrix = np.array(lines[7]), np.array(lines[4:7])
        if position.shape != (3,) or not (np.abs(position) <= MAX_NUMBER).all() or not (np.abs(matrix) <= 2).all():
            raise ValueError("numbers are missing or too large")
        angles = Rotation.from_matrix(matrix).as_euler("zyx", degrees=True)
    except ValueError as error:
        raise ValueError(
            f"{file} must be a camera of Baidu Mall, with a rotation in lines 5 to 7 and a position in line 8: {error}."
        ) from None
    return *position.tolist(), *angles.tolist()
