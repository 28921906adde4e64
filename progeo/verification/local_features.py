"""Local features of images: SIFT points with RootSIFT descriptors, bounded in number and the same in every run."""

import struct
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from torch import Tensor

SIDE_PX = 512
"""Length in pixels to which the longer side of an image is resized before its features are extracted."""
MAX_FEATURES = 1000
_MIN_SIDE_PX = 16
_CONTRAST = 0.01
"""Minimum contrast of a point: a quarter of OpenCV's default, so that dark and plain photos get features, too."""
_DIM = 128
_DESCRIPTOR_SCALE = 512
"""Factor of the values of a RootSIFT descriptor, of unit length, whose largest are clipped at 255."""
_STEPS_PER_PX = 64
"""Resolution of stored positions."""
_HEADER = struct.Struct("<HHH")
_POINT_BYTES = 4


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """Local features of one image, strongest first."""

    shape: tuple[int, int]
    """Height and width in pixels of the resized image."""
    steps: np.ndarray
    """Column and row of each point in 1/64 pixel, uint16 (n, 2)."""
    descriptors: np.ndarray
    """RootSIFT descriptors times 512, uint8 (n, 128)."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.steps.nbytes + self.descriptors.nbytes

    @property
    def points(self) -> np.ndarray:
        """Column and row of each point in pixels of the resized image, float32 (n, 2)."""
        return self.steps.astype(np.float32) / _STEPS_PER_PX

    def to_bytes(self) -> bytes:
        """Compress the features to bytes."""
        values = self.steps.astype("<u2").tobytes() + self.descriptors.tobytes()
        return _HEADER.pack(len(self), *self.shape) + pa.compress(values, "zstd", asbytes=True)

    @classmethod
    def from_bytes(cls, values: bytes | memoryview) -> "LocalFeatures":
        """Parse what `to_bytes` returned.

        Raises:
            ValueError: it is not as `to_bytes` writes it.
        """
        try:
            count, *shape = _HEADER.unpack_from(values)
            if count > MAX_FEATURES or max(shape) > SIDE_PX:
                raise ValueError("its sizes are impossible")
            size = count * (_POINT_BYTES + _DIM)
            flat = np.frombuffer(pa.decompress(values[_HEADER.size :], size, "zstd", asbytes=True), np.uint8)
            if len(flat) != size:
                raise ValueError("it is truncated")
        except (struct.error, pa.ArrowException, OSError) as error:
            raise ValueError(str(error).rstrip(".")) from None
        steps = flat[: count * _POINT_BYTES].view("<u2").reshape(count, 2)
        return cls((shape[0], shape[1]), steps, flat[count * _POINT_BYTES :].reshape(count, _DIM))


def resized_pixels(pixels: Tensor, *, multiple: int = 1) -> np.ndarray:
    """Resize an image so that its longer side has `SIDE_PX`, uint8 (height, width, 3).

    Args:
        pixels: uint8 (3, H, W).
        multiple: height and width are rounded to multiples of this.
    """
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    scale = SIDE_PX / max(image.shape[:2])
    height, width = (max(multiple, multiple * round(side * scale / multiple)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


def extract_local_features(pixels: Tensor) -> LocalFeatures:
    """Extract the SIFT features (Lowe, IJCV 2004) of an image, uint8 (3, H, W), at most 1000, the strongest.

    Descriptors are those of RootSIFT (Arandjelovic and Zisserman, CVPR 2012). A sliver of an image has none.
    """
    gray = cv2.cvtColor(resized_pixels(pixels), cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    if min(gray.shape) < _MIN_SIDE_PX:
        return LocalFeatures((height, width), np.empty((0, 2), np.uint16), np.empty((0, _DIM), np.uint8))
    sift = cv2.SIFT.create(nfeatures=MAX_FEATURES, contrastThreshold=_CONTRAST)  # one detector serves one thread
    keypoints, descriptors = sift.detectAndCompute(gray, None)
    if not keypoints:
        return LocalFeatures((height, width), np.empty((0, 2), np.uint16), np.empty((0, _DIM), np.uint8))
    found = np.array([(-each.response, *each.pt, each.angle, each.size) for each in keypoints])
    order = np.lexsort(found.T[::-1])[:MAX_FEATURES]  # OpenCV's order depends on its threads
    steps = np.rint(found[order, 1:3] * _STEPS_PER_PX).clip(0, SIDE_PX * _STEPS_PER_PX).astype(np.uint16)
    return LocalFeatures((height, width), steps, _root_sift(descriptors[order]))


def _root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Convert SIFT descriptors (n, 128) to those of RootSIFT: square roots of their share of the sum, as uint8."""
    shares = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return np.rint(np.sqrt(shares) * _DESCRIPTOR_SCALE).clip(0, 255).astype(np.uint8)


def mutual_matches(first: np.ndarray, second: np.ndarray, *, max_ratio: float) -> np.ndarray:
    """Match descriptors that are nearest to each other and clearly nearer than the second nearest, int64 (m, 2).

    Args:
        first: (n, D).
        second: (k, D).
        max_ratio: maximum distance to the nearest descriptor of `second`, in distances to the second nearest (Lowe's
            ratio test).

    Returns:
        Rows of `first` and of `second`, nearest pairs first.
    """
    if not len(first) or len(second) < 2:
        return np.empty((0, 2), np.int64)
    ones, others = first.astype(np.float32), second.astype(np.float32)
    squared = -2 * ones @ others.T  # exact: the values are whole numbers below 2**24
    squared += np.square(ones).sum(axis=1)[:, None]
    squared += np.square(others).sum(axis=1)
    nearest, nearest_back = squared.argmin(axis=1), squared.argmin(axis=0)
    rows = np.arange(len(first))
    distances = squared[rows, nearest]
    squared[rows, nearest] = np.inf
    is_match = (nearest_back[nearest] == rows) & (distances < max_ratio**2 * squared.min(axis=1))
    rows = np.flatnonzero(is_match)
    rows = rows[np.argsort(distances[rows], kind="stable")]
    return np.stack([rows, nearest[rows]], axis=1)
