"""Reduce the dimension of descriptors with PCA."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from progeo.progress import followed, phase

_MIN_STD = 1e-4
"""Minimum std of a dimension that can be whitened, relative to the largest."""
_ROUNDING = 1e-6
"""Std, relative to the largest or to the length of the mean, that may be due to rounding."""
_BLOCK_VALUES = 2**25
"""Values of float64 that are computed with at a time: 256 MiB."""


@dataclass(frozen=True)
class Pca:
    """A PCA projection of descriptors: `weight @ descriptor + bias`."""

    weight: np.ndarray
    """Projection, float32 (d, D)."""
    bias: np.ndarray
    """Offset, float32 (d,)."""
    kept: float
    """Fraction of the sample's variance in the kept dimensions, 0 to 1."""


def fit_pca(sample: np.ndarray, dim: int, *, whiten: bool) -> Pca:
    """Fit a PCA projection; whitening as in Jegou and Chum (ECCV 2012), with the variances of n - 1 as OpenIBL does.

    Covariances are summed in float64. Of fewer descriptors than dimensions, the products of descriptors are decomposed
    instead, an (n, n) matrix.

    Args:
        sample: descriptors, float32 (n, D).
        dim: d, the number of dimensions to keep.
        whiten: scale every kept dimension to the same variance.

    Raises:
        ValueError: dim exceeds the rank limit min(n, D), or the sample does not vary in as many dimensions.
    """
    num, width = sample.shape
    if dim > min(width, num):
        raise ValueError(f"`dim` must be at most {min(width, num)}, with {num} descriptors of {width}; got {dim}.")
    is_wide, mean = width > num, sample.mean(axis=0, dtype=np.float64)
    products = np.zeros((min(num, width),) * 2)
    for _, block in _centered(sample, mean, by_column=is_wide):
        products += block @ block.T if is_wide else block.T @ block
    products /= max(1, num - 1)
    with phase("decomposing the covariances"):
        variances, vectors = eigh(products, subset_by_index=[len(products) - dim, len(products) - 1])
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    stds = np.sqrt(variances)
    minimum = _MIN_STD if whiten else _ROUNDING if is_wide else 0
    _check_stds(stds, max(minimum * stds[0], whiten * _ROUNDING * float(np.linalg.norm(mean))), whiten=whiten)
    weight = vectors.T
    if is_wide:
        weight = np.empty((dim, width))
        for columns, block in _centered(sample, mean, by_column=True):
            weight[:, columns] = vectors.T @ block / (stds * max(1, num - 1) ** 0.5)[:, None]
    if whiten:
        weight = weight / stds[:, None]
    return Pca(
        weight.astype(np.float32), (-weight @ mean).astype(np.float32), float(variances.sum() / products.trace())
    )


def _check_stds(stds: np.ndarray, minimum: float, *, whiten: bool) -> None:
    """Check that the sample varies in every kept dimension, at least by `minimum`."""
    num_varying = int((stds >= minimum).sum()) if stds[0] > 0 else 0
    if num_varying < len(stds):
        how = " and can be whitened" if whiten else ""
        raise ValueError(f"Only {num_varying} dimensions vary{how}: lower `dim`, or raise `sample`.")


def _centered(sample: np.ndarray, mean: np.ndarray, *, by_column: bool) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of the columns or rows of a sample minus its mean, float64, with their slices."""
    num, width = sample.shape
    length, across = (width, num) if by_column else (num, width)
    size = max(1, _BLOCK_VALUES // across)
    starts = range(0, length, size)
    for start in followed(starts, "multiplying descriptors", total=len(starts), unit="blocks"):
        here = slice(start, start + size)
        yield here, sample[:, here] - mean[here] if by_column else sample[here] - mean
