"""Label smoothing by distance on the map."""

import torch
from torch import Tensor


def distance_smoothed_labels(positions_m: Tensor, labels: Tensor, cells_m: Tensor, *, smoothing_m: float) -> Tensor:
    """Compute target probabilities of classes that fall with the distance of their centers (PIGEON, CVPR 2024, eq. 2).

    The target of class j for an image x of class y is proportional to exp(-(d(x, c_j) - d(x, c_y)) / smoothing_m),
    where d is the distance to a center. UTM meters are not exact in float32, their differences here are.

    Args:
        positions_m: east and north of each image from the center of the cell of its class, (B, 2).
        labels: int64 (B,).
        cells_m: east and north of the cells' corners in whole meters, int64 (C, 2).
        smoothing_m: tau, meters.

    Returns:
        (B, C), each row with the sum 1.
    """
    from_own = cells_m[None] - cells_m[labels][:, None]
    distances_m = torch.linalg.vector_norm(from_own.to(positions_m.dtype) - positions_m[:, None], dim=2)
    return (distances_m / -smoothing_m).softmax(dim=1)
