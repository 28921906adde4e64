"""Matchers: which points of two images are the same points of the world, one table `MATCHERS`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from progeo.engine.log import LOGGER
from progeo.printable import reason_of_failure
from progeo.verification.geometry import agreeing_points
from progeo.verification.local_features import (
    LocalFeatures,
    extract_local_features,
    mutual_matches,
    resized_pixels,
)

MAX_LINES = 100
_MAX_RATIO = 0.8
_MULTIPLE_PX = 16
"""Heights and widths of images for networks are multiples of this."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images that were matched."""

    inliers: int
    """Number of matched points whose geometry agrees."""
    lines: np.ndarray
    """Such points, at most 100: x and y in the first image, x and y in the second, as fractions of their width and
    height, float32 (n, 4)."""


class Matcher(ABC):
    """Matches pairs of images; several threads may do so at the same time."""

    name: str
    stores_features: ClassVar[bool] = False
    """Whether `prepare` returns `LocalFeatures`, which an index can store."""

    @abstractmethod
    def prepare(self, pixels: Tensor) -> Any:
        """Return what matching an image needs, with its `num_bytes`: computed once for all its pairs.

        Args:
            pixels: uint8 (3, H, W).
        """

    @abstractmethod
    def match(self, query: Any, candidate: Any) -> Pair:
        """Match two prepared images."""


class SiftMatcher(Matcher):
    """Matches SIFT features that are mutual nearest neighbors and pass the ratio test."""

    stores_features: ClassVar[bool] = True

    def __init__(self) -> None:
        self.name = "sift"

    def prepare(self, pixels: Tensor) -> LocalFeatures:
        """Extract the local features of an image."""
        return extract_local_features(pixels)

    def match(self, query: LocalFeatures, candidate: LocalFeatures) -> Pair:
        """Match the local features of two images."""
        rows = mutual_matches(query.descriptors, candidate.descriptors, max_ratio=_MAX_RATIO)
        first, second = query.points[rows[:, 0]], candidate.points[rows[:, 1]]
        return _pair(first, second, query.shape, candidate.shape)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """A resized image."""

    pixels: np.ndarray
    """uint8 (height, width, 3)."""

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def on(self, device: str) -> Tensor:
        """Return the image as values from 0 to 1 on a device, (3, height, width)."""
        return torch.from_numpy(self.pixels).to(device).permute(2, 0, 1).float() / 255


@dataclass(eq=False)
class VismatchMatcher(Matcher):
    """A matcher of the library vismatch, such as LoFTR or SuperPoint with LightGlue."""

    name: str
    matcher: Callable[[Tensor, Tensor], dict[str, Any]]
    device: str = "cpu"
    _lock: Lock = field(default_factory=Lock)
    _has_failed: bool = False

    def prepare(self, pixels: Tensor) -> _Pixels:
        """Resize an image."""
        return _Pixels(resized_pixels(pixels, multiple=_MULTIPLE_PX))

    def match(self, query: _Pixels, candidate: _Pixels) -> Pair:
        """Match two images; a pair at which the matcher fails, as some do without features, has no inliers."""
        try:
            with self._lock:  # these networks keep state
                found = self.matcher(query.on(self.device), candidate.on(self.device))
            first, second = (np.asarray(found[f"matched_kpts{side}"], np.float32).reshape(-1, 2) for side in (0, 1))
        except Exception as error:  # code of others can fail in any way
            if not self._has_failed:
                LOGGER.warning("%s fails at a pair of images, which gets no inliers: %s", self.name, error)
            self._has_failed = True
            first = second = np.empty((0, 2), np.float32)
        return _pair(first, second, query.shape, candidate.shape)


def _pair(first: np.ndarray, second: np.ndarray, first_shape: tuple[int, int], second_shape: tuple[int, int]) -> Pair:
    """Keep the matched points (n, 2) of images of these heights and widths that agree with one geometric model."""
    agree = agreeing_points(first, second)
    sizes = np.array([*first_shape[::-1], *second_shape[::-1]], np.float32)
    lines = np.concatenate([first[agree], second[agree]], axis=1) / sizes
    return Pair(int(agree.sum()), lines[:MAX_LINES].clip(0, 1))


def _sift(name: str, device: str) -> Matcher:
    if name:
        raise ValueError(f"There is one sift, not sift:{name}.")
    return SiftMatcher()


def _vismatch(name: str, device: str) -> Matcher:
    try:
        import vismatch
    except ImportError:
        raise ValueError(
            f"vismatch:{name} needs the library vismatch, which is not installed: pip install 'progeo[match]', or take "
            f"sift."
        ) from None
    if name not in vismatch.available_models:
        known = ", ".join(vismatch.available_models)
        raise ValueError(f"vismatch has no matcher {name!r}; it has {known}.")
    try:
        matcher = vismatch.get_matcher(name, device=device)
    except Exception as error:  # weights that cannot be loaded, a missing package
        raise ValueError(f"vismatch:{name} cannot be loaded: {reason_of_failure(error)}") from error
    matcher.skip_ransac = True  # as the geometry of all matchers is checked alike
    return VismatchMatcher(f"vismatch:{name}", matcher, device)


MATCHERS: dict[str, Callable[[str, str], Matcher]] = {"sift": _sift, "vismatch": _vismatch}
"""Builders of matchers by kind: of `KIND:NAME`, a builder gets the `NAME`, which may be empty, and the device."""


def build_matcher(name: str, *, device: str | torch.device = "cpu") -> Matcher:
    """Build the matcher of a name such as `sift` or `vismatch:superpoint-lightglue`.

    Args:
        device: where the networks of a matcher run.

    Raises:
        ValueError: there is no such matcher, or its library is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind not in MATCHERS:
        raise ValueError(f"There is no matcher {name!r}: take sift or vismatch:NAME, such as vismatch:loftr.")
    return MATCHERS[kind](rest, str(device))
