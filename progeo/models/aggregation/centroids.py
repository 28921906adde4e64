"""Centers of clusters of local features, which NetVLAD and others start from: k-means, and published files."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from progeo.atomic import replacing
from progeo.hdf5_files import own_values
from progeo.printable import first_line

_ITERATIONS = 100
_MAX_COMPRESSION = 1100
"""Bytes that a byte of a file can stand for, compressed as HDF5 does it."""
_RATIO = 100
"""How many times the weight of its second nearest cluster a typical local feature gives its nearest at the start."""
_MAX_LENGTH = 1.01
"""Of an L2-normalized local feature: 1 and some rounding, or 0 where a feature map is 0."""


def cluster_centers(local_features: Tensor, num_clusters: int, *, seed: int) -> Tensor:
    """Cluster local features by k-means, 100 iterations on all of them.

    Args:
        local_features: float32 (n, C).
        num_clusters: K.
        seed: seed of the first centers.

    Returns:
        float32 (K, C).

    Raises:
        ValueError: fewer local features than clusters.
    """
    count, channels = local_features.shape
    if count < num_clusters:
        raise ValueError(f"{num_clusters} clusters need as many local features, there are {count}: use more images.")
    import faiss  # an encoder is loaded without it

    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": count}  # or it takes 256 K random ones only
    kmeans = faiss.Kmeans(channels, num_clusters, niter=_ITERATIONS, seed=seed % 2**31, **limits)
    kmeans.train(np.ascontiguousarray(local_features.cpu()))
    return torch.from_numpy(kmeans.centroids).to(local_features.device)


def sharpness(centroids: Tensor, local_features: Tensor) -> float:
    """Return the factor alpha of cosines to centroids, with which the nearest is clearly ahead in a softmax.

    The mean difference of the cosines to the two nearest centroids, or the cosine to a single one, gives weights of the
    ratio 100.

    Args:
        centroids: (K, C).
        local_features: L2-normalized (n, C).

    Raises:
        ValueError: all local features are as near to a second centroid.
    """
    cosines = local_features @ F.normalize(centroids, dim=1).T
    nearest = cosines.topk(min(2, len(centroids)), dim=1).values
    gap = (nearest[:, 0] - nearest[:, 1:].sum(dim=1)).mean(dtype=torch.float64).item()
    if not gap > 0:
        raise ValueError("Training cannot start from these centroids: no local feature is nearer to one than to all.")
    return math.log(_RATIO) / gap


def read_centroids(path: Path) -> tuple[Tensor, Tensor]:
    """Read a file of published NetVLADs, such as `vgg16_pitts_64_desc_cen.hdf5`.

    Returns:
        centroids: float32 (K, C).
        local_features: L2-normalized, float32 (n, C).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    import h5py  # an encoder is loaded without it

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with h5py.File(path) as file:
            arrays = [file[name] for name in ("centroids", "descriptors")]
            if sum(each.nbytes for each in arrays) > _MAX_COMPRESSION * path.stat().st_size:
                raise ValueError("it claims more values than it can hold")
            centroids, local_features = (
                torch.from_numpy(np.asarray(own_values(file, each), np.float32)) for each in arrays
            )
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is no HDF5 file with the data sets centroids and descriptors: {first_line(error)}."
        ) from None
    if centroids.ndim != 2 or local_features.ndim != 2 or centroids.shape[1] != local_features.shape[1]:
        raise ValueError(
            f"{path}: centroids (K, C) and descriptors (n, C) must be of the same C channels, got "
            f"{tuple(centroids.shape)} and {tuple(local_features.shape)}."
        )
    if not centroids.isfinite().all():
        raise ValueError(f"{path}: centroids must be finite, and are not.")
    if not (local_features.norm(dim=1) <= _MAX_LENGTH).all():
        raise ValueError(f"{path}: descriptors must be L2-normalized, as NetVLAD takes them, and are not.")
    return centroids, local_features


def write_centroids(path: Path, centroids: np.ndarray, local_features: np.ndarray) -> None:
    """Write what `read_centroids` reads: centroids (K, C) and the L2-normalized local features (n, C) clustered."""
    import h5py  # an encoder is loaded without it

    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file["centroids"], file["descriptors"] = centroids, local_features
