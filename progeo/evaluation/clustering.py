"""Cluster descriptors for the inverted lists of an index, in a quarter of the CPU time that faiss takes."""

import numpy as np
import torch

from progeo.evaluation.exact_search import multiply
from progeo.progress import Progress

_ITERATIONS = 10
_PRODUCTS_AT_ONCE = 2**20


def cluster(rows: np.ndarray, count: int) -> np.ndarray:
    """Cluster rows, float32 (n, D), by k-means; returns centers, float32 (count, D), the same for the same rows.

    It starts from random rows. A cluster that loses all of its rows continues from a random row.
    """
    random = np.random.default_rng(0)
    centers = rows[random.choice(len(rows), count, replace=False)]
    with Progress(f"clustering {count:,} lists", total=_ITERATIONS * len(rows), unit="rows") as bar:
        for _ in range(_ITERATIONS):
            labels = nearest_centers(rows, centers, bar=bar)
            sizes = np.bincount(labels, minlength=count)
            sums = torch.zeros(centers.shape).index_add_(0, torch.from_numpy(labels), torch.from_numpy(rows)).numpy()
            centers = sums / np.maximum(sizes, 1)[:, None].astype(np.float32)
            empty = np.flatnonzero(sizes == 0)
            centers[empty] = rows[random.choice(len(rows), len(empty))]
    return centers


def nearest_centers(rows: np.ndarray, centers: np.ndarray, *, bar: Progress | None = None) -> np.ndarray:
    """Find the nearest of centers (C, D) for each of rows (n, D), all float32: int64 (n,); `bar` counts the rows."""
    labels = np.empty(len(rows), np.int64)
    halves = np.einsum("cd,cd->c", centers, centers) / 2
    step = max(1, _PRODUCTS_AT_ONCE // len(centers))
    products = np.empty((step, len(centers)), np.float32)
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        block = products[: len(labels[here])]
        multiply(rows[here], centers, block)
        block -= halves
        labels[here] = block.argmax(axis=1)
        if bar is not None:
            bar.update(len(block))
    return labels
