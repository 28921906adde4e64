"""Outlines of classes on a map: the part of a class's cell that lies in the direction of its heading bin."""

import numpy as np

from progeo.places.cells import class_centers


def class_outlines(class_ids: np.ndarray, *, cell_side_m: int, heading_bin_deg: int) -> np.ndarray:
    """Compute four corners of each class, east and north in meters, float64 (C, 4, 2), clockwise.

    The classes of a cell are its wedges: each goes from the center of the cell to its border, in the directions that
    its images look in. With a bin of 360 degrees it is the whole cell.

    Args:
        class_ids: int64 (C, 3), as returned by `class_ids`.
        cell_side_m, heading_bin_deg: as passed to `class_ids`.
    """
    centers = class_centers(class_ids, cell_side_m=cell_side_m)[:, None]
    if heading_bin_deg == 360:
        return centers + _on_border(np.array([225.0, 315.0, 45.0, 135.0])) * cell_side_m / 2
    turns = np.array([0.0, heading_bin_deg / 2, heading_bin_deg])
    wedges = _on_border(np.asarray(class_ids)[:, 2:] + turns) * cell_side_m / 2
    return centers + np.concatenate([np.zeros((len(wedges), 1, 2)), wedges], axis=1)


def _on_border(headings_deg: np.ndarray) -> np.ndarray:
    """Compute where a direction leaves the square from -1 to 1, east and north (..., 2)."""
    around = np.radians(headings_deg)
    directions = np.stack([np.sin(around), np.cos(around)], axis=-1)
    return directions / np.abs(directions).max(axis=-1, keepdims=True)
