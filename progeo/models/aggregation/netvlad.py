"""NetVLAD: soft assignment of local features to clusters, and the sums of their residuals (Arandjelovic, CVPR 2016)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.centroids import cluster_centers, read_centroids, sharpness, write_centroids
from progeo.models.aggregation.precision import full_precision

_SIDES = {"thirds": 3, "quarters": 2}
"""Rows and columns of the grid of each kind of regions."""


class NetVLAD(nn.Module):
    """NetVLAD head: L2 over channels -> soft assignment -> sums of residuals -> L2 per cluster -> L2.

    Args:
        in_channels: C, channels of the feature map.
        num_clusters: K.
        regions: which descriptors `regions` gives: `thirds`, the whole image, three rows and three columns, as WAKD;
            `quarters`, the whole image, four halves and four quarters, as SFRS.

    Raises:
        ValueError: fewer than two clusters, or unknown regions.
    """

    membership: Tensor
    """Whether a cell of the grid belongs to a region, 1 or 0, (R, cells)."""

    def __init__(self, in_channels: int, num_clusters: int, regions: str = "thirds") -> None:
        super().__init__()
        check_options(num_clusters=num_clusters, regions=regions)
        self.kind = regions
        bound = in_channels**-0.5  # that of a convolution, as published
        self.assignment = nn.Parameter(torch.empty(num_clusters, in_channels).uniform_(-bound, bound))
        self.centroids = nn.Parameter(torch.rand(num_clusters, in_channels))
        self.register_buffer("membership", torch.tensor(_memberships(regions), device="cpu"), persistent=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) into L2-normalized descriptors (B, K C)."""
        return _descriptors(self.residuals(feature_map))

    def residuals(self, feature_map: Tensor) -> Tensor:
        """Sum the residuals of the local features of (B, C, h, w) to each centroid, weighted by assignment: (B, K, C).

        The sums are not normalized. They are computed in float32 under autocast, too.
        """
        with full_precision(feature_map):
            return self._sums(self._local_features(feature_map).flatten(2).mT)

    def regions(self, feature_map: Tensor) -> Tensor:
        """Aggregate regions of (B, C, h, w): L2-normalized descriptors (B, R, K C), where the first is `forward`'s.

        The residuals of the cells of a grid are summed once, and added up for each region.

        Returns:
            `thirds`: whole, rows from the top, columns from the left, R = 7. `quarters`: whole, top, bottom, left,
            right, and the quarters row by row, R = 9.

        Raises:
            ValueError: the map is not divisible into cells.
        """
        batch, channels, height, width = feature_map.shape
        side = region_grid(self.kind, height, width)
        with full_precision(feature_map):
            grid = self._local_features(feature_map).view(batch, channels, side, height // side, side, width // side)
            cells = grid.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)  # (B, cells, n, C)
            sums = self._sums(cells)
            return _descriptors(torch.einsum("rg,bgkc->brkc", self.membership.to(sums.dtype), sums))

    def check_map(self, height: int, width: int, *, stride: int | None = None) -> None:
        """Check that a map can be divided into regions, see `region_grid`."""
        region_grid(self.kind, height, width, stride=stride)

    @torch.no_grad()
    def initialize(self, centroids: Tensor, local_features: Tensor) -> float:
        """Start from clusters: assign by the cosine to the centroids, sharpened so that the best is clearly ahead.

        Args:
            centroids: centers of clusters of L2-normalized local features (K, C).
            local_features: L2-normalized (n, C).

        Returns:
            The factor alpha, see `sharpness`.

        Raises:
            ValueError: the shapes do not fit, or all local features are as near to a second centroid.
        """
        if centroids.shape != self.centroids.shape or local_features.shape[1:] != centroids.shape[1:]:
            raise ValueError(
                f"NetVLAD of {self.centroids.shape[0]} clusters and {self.centroids.shape[1]} channels cannot start "
                f"from centroids {tuple(centroids.shape)} and local features {tuple(local_features.shape)}."
            )
        alpha = sharpness(centroids, local_features)
        self.centroids.copy_(centroids)
        self.assignment.copy_(alpha * F.normalize(centroids, dim=1))
        return alpha

    def _local_features(self, feature_map: Tensor) -> Tensor:
        return F.normalize(feature_map.to(self.centroids.dtype), dim=1)

    def _sums(self, local_features: Tensor) -> Tensor:
        """Sum residuals of (..., n, C) over n: (..., K, C), as sum(a x) - centroid sum(a) with assignments a."""
        assigned = (local_features @ self.assignment.mT).softmax(dim=-1)
        return assigned.mT @ local_features - assigned.sum(dim=-2)[..., None] * self.centroids


def check_options(*, num_clusters: int, regions: str) -> None:
    """Check the options of NetVLAD.

    Raises:
        ValueError: fewer than two clusters, or unknown regions.
    """
    if num_clusters < 2:
        raise ValueError(f"`aggregation_options`: num_clusters of netvlad must be at least 2, got {num_clusters}.")
    if regions not in _SIDES:
        raise ValueError(f"`aggregation_options`: regions of netvlad must be {' or '.join(_SIDES)}, got {regions!r}.")


def region_grid(regions: str, height: int, width: int, *, stride: int | None = None) -> int:
    """Return the rows and columns of the grid of regions, after a check that they divide a feature map.

    Args:
        regions: `thirds` or `quarters`.
        height, width: of the feature map.
        stride: pixels per cell of the map, to name image sizes that fit; None if it is not known.

    Raises:
        ValueError: they do not divide it.
    """
    side = _SIDES[regions]
    if height % side or width % side:
        advice = "use another image size."
        if stride is not None:
            fitting = (max(round(length / side), 1) * side * stride for length in (height, width))
            advice = f"use sides in multiples of {side * stride} pixels, such as {' x '.join(map(str, fitting))}."
        raise ValueError(
            f"The regions {regions} need feature maps whose rows and columns {side} divides, got {height} x {width}: "
            f"{advice}"
        )
    return side


def initialize_netvlad(netvlad: nn.Module, local_features: Tensor, seed: int) -> None:
    """Cluster local features (n, C) by k-means, and start from their clusters; they need not be normalized.

    Raises:
        ValueError: fewer local features than clusters.
    """
    assert isinstance(netvlad, NetVLAD)
    local_features = F.normalize(local_features, dim=1)
    netvlad.initialize(cluster_centers(local_features, len(netvlad.centroids), seed=seed), local_features)


def initialize_from(netvlad: nn.Module, path: Path) -> None:
    """Start from the clusters of a file, see `read_centroids`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or of other numbers of clusters or channels.
    """
    assert isinstance(netvlad, NetVLAD)
    device = netvlad.centroids.device
    centroids, local_features = (each.to(device) for each in read_centroids(path))
    try:
        netvlad.initialize(centroids, local_features)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save_clusters(netvlad: nn.Module, local_features: Tensor, path: Path) -> None:
    """Save what `initialize_from` starts from, given the local features (n, C) that NetVLAD was initialized with."""
    assert isinstance(netvlad, NetVLAD)
    normalized = F.normalize(local_features, dim=1)
    write_centroids(path, netvlad.centroids.detach().cpu().numpy(), normalized.cpu().numpy())


def _descriptors(residuals: Tensor) -> Tensor:
    """Normalize residuals (..., K, C) per cluster, and all together: (..., K C)."""
    return F.normalize(F.normalize(residuals, dim=-1).flatten(-2), dim=-1)


def _memberships(regions: str) -> list[list[float]]:
    """List the regions: 1 for each cell of the grid, row by row, that belongs to one, else 0."""
    side = _SIDES[regions]
    cells = [(row, column) for row in range(side) for column in range(side)]
    whole = [[1.0 for _ in cells]]
    rows = [[float(row == each) for row, _ in cells] for each in range(side)]
    columns = [[float(column == each) for _, column in cells] for each in range(side)]
    single = [[float(cell == each) for cell in cells] for each in cells] if regions == "quarters" else []
    return whole + rows + columns + single
