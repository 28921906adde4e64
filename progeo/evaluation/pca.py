"""Reduce the dimension of descriptors with PCA."""

from dataclasses import dataclass

import faiss
import numpy as np

_MIN_STD = 1e-4
"""Minimum std of a dimension that can be whitened, relative to the largest."""
_ROUNDING = 1e-3
"""Std relative to the largest that rounding of the products of descriptors may hide."""


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

    Args:
        sample: descriptors, float32 (n, D).
        dim: d, the number of dimensions to keep.
        whiten: scale every kept dimension to the same variance.

    Raises:
        ValueError: dim exceeds the rank limit min(n, D), or a dimension to whiten has no variance.
    """
    num, width = sample.shape
    if dim > min(width, num):
        raise ValueError(f"`dim` must be at most {min(width, num)}, with {num} descriptors of {width}; got {dim}.")
    pca = faiss.PCAMatrix(width, dim)
    pca.max_points_per_d = num
    # Whitening divides by small numbers: subtract the mean before faiss computes covariances in float32.
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = np.ascontiguousarray(sample - mean if whiten else sample, np.float32)
    pca.train(centered)
    weight, bias = faiss.vector_to_array(pca.A).reshape(dim, width), faiss.vector_to_array(pca.b)
    variances = np.maximum(faiss.vector_to_array(pca.eigenvalues), 0) / max(1, num - 1)
    values = centered @ weight.T
    stds = np.linalg.norm(values - values.mean(axis=0), axis=0) / max(1, num - 1) ** 0.5
    # Of fewer descriptors than dimensions, faiss gives components that do not vary the direction of others.
    is_usable = stds <= 2 * np.sqrt(variances[:dim]) + _ROUNDING * stds.max()
    if whiten:
        is_usable &= stds > _MIN_STD * stds.max()
    if not is_usable.all():
        how = " and can be whitened" if whiten else ""
        raise ValueError(f"Only {is_usable.argmin()} dimensions vary{how}: lower `dim`, or raise `sample`.")
    if whiten:
        weight = weight / stds[:, None]
        bias = -weight @ mean
    return Pca(weight, bias, float(variances[:dim].sum() / variances.sum()))
