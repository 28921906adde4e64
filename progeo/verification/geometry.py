"""Geometry of two images: which matched points agree with one relative position of the cameras."""

import cv2
import numpy as np

_CONFIDENCE = 0.999
_MAX_ITERATIONS = 2000
_MAX_ERROR_PX = 4.0
_MIN_POINTS = 8
"""Number of points below which nothing is fitted: a fundamental matrix that any points fit says nothing."""


def agreeing_points(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return which matched points agree with one fundamental matrix, bool (n,).

    It is fitted by MAGSAC++ (Barath et al., CVPR 2020), whose random numbers are the same in every run.

    Args:
        first: columns and rows in pixels, float32 (n, 2).
        second: those of their matches, float32 (n, 2).
    """
    nothing = np.zeros(len(first), bool)
    if len(np.unique(first, axis=0)) < _MIN_POINTS or len(np.unique(second, axis=0)) < _MIN_POINTS:
        return nothing
    ones, others = np.ascontiguousarray(first), np.ascontiguousarray(second)
    try:
        found, agree = cv2.findFundamentalMat(
            ones, others, cv2.USAC_MAGSAC, _MAX_ERROR_PX, _CONFIDENCE, _MAX_ITERATIONS
        )
    except cv2.error:  # all on a line, or the like
        return nothing
    return nothing if found is None or agree is None else agree.ravel().astype(bool)
