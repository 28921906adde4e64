"""Geometry of two images: which matched points agree with one relative position of the cameras."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np

_CONFIDENCE = 0.999
_MAX_ITERATIONS = 2000

Geometry = Literal["fundamental", "homography"]


@dataclass(frozen=True)
class _Model:
    """A geometric model that MAGSAC++ (Barath et al., CVPR 2020) fits; its random numbers are the same in every run."""

    min_points: int
    """Number of points below which nothing is fitted: one that any points fit says nothing."""
    max_error_px: float
    fit: Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray | None, np.ndarray | None]]
    """Maps points (n, 2), their matches (n, 2) and the maximum error to the model and which agree, (n, 1)."""


def _fundamental(first: np.ndarray, second: np.ndarray, max_error_px: float) -> tuple:
    return cv2.findFundamentalMat(first, second, cv2.USAC_MAGSAC, max_error_px, _CONFIDENCE, _MAX_ITERATIONS)


def _homography(first: np.ndarray, second: np.ndarray, max_error_px: float) -> tuple:
    return cv2.findHomography(
        first, second, cv2.USAC_MAGSAC, max_error_px, maxIters=_MAX_ITERATIONS, confidence=_CONFIDENCE
    )


GEOMETRIES: Mapping[Geometry, _Model] = MappingProxyType(
    {
        "fundamental": _Model(min_points=8, max_error_px=4.0, fit=_fundamental),
        "homography": _Model(min_points=5, max_error_px=6.0, fit=_homography),
    }
)
"""Models by name: fundamental for any scene, homography for a plane or a camera that only turns."""


def agreeing_points(first: np.ndarray, second: np.ndarray, geometry: Geometry = "fundamental") -> np.ndarray:
    """Return which matched points agree with one geometric model, bool (n,).

    Args:
        first: columns and rows in pixels, float32 (n, 2).
        second: those of their matches, float32 (n, 2).
    """
    model, nothing = GEOMETRIES[geometry], np.zeros(len(first), bool)
    if len(np.unique(first, axis=0)) < model.min_points or len(np.unique(second, axis=0)) < model.min_points:
        return nothing
    try:
        found, agree = model.fit(np.ascontiguousarray(first), np.ascontiguousarray(second), model.max_error_px)
    except cv2.error:  # all on a line, or the like
        return nothing
    return nothing if found is None or agree is None else agree.ravel().astype(bool)
