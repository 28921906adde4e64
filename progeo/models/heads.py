"""Margin classifiers over the classes of a group."""

import math
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from progeo.models.options import HeadKind

_KINDS = get_args(HeadKind)
_MIN_NORM = 1e-12
"""Norms below are taken as this, as in `F.normalize`, so that a row of zeros has a gradient."""


def build_head(
    kind: HeadKind, dim: int, num_classes: int, scale: float, margin: float, *, easy_margin: bool = False
) -> nn.Module:
    """Build a classifier `head(descriptors (B, D), labels (B,)) -> logits (B, C)` with `head.weight` (C, D).

    Args:
        kind: `cosface` (Wang et al., CVPR 2018, eq. 4), `arcface` (Deng et al., CVPR 2019, eq. 3) or `linear`.
        dim: D, the dimension of the descriptors.
        num_classes: C.
        scale: s, the factor of the cosines; unused by `linear`.
        margin: m, subtracted from the cosine by `cosface`, added to the angle in radians by `arcface`; unused by
            `linear`.
        easy_margin: apply the margin of `arcface` only where the cosine of the correct class is above 0, as
            Divide&Classify (Trivigno et al., ICCV 2023) does.

    Raises:
        ValueError: an unknown `kind`, or one without an easy margin.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(_KINDS)}, got {kind!r}.")
    if kind == "arcface":
        return ArcFaceHead(dim, num_classes, scale, margin, easy_margin=easy_margin)
    if easy_margin:
        raise ValueError(f"`easy_margin` is for `kind` arcface only, got {kind}: leave it out.")
    return LinearHead(dim, num_classes) if kind == "linear" else CosFaceHead(dim, num_classes, scale, margin)


class CosFaceHead(nn.Module):
    """Cosine classifier with an additive margin on the cosine of the correct class (Wang et al., CVPR 2018, eq. 4)."""

    def __init__(self, dim: int, num_classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, dim)))
        self.scale = scale
        self.margin = margin

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute logits (B, C) of descriptors (B, D), which need not be normalized."""
        cosines = self._cosines(descriptors)
        index = labels[:, None]
        return cosines.scatter(1, index, cosines.gather(1, index) - self.margin).mul_(self.scale)

    def _cosines(self, descriptors: Tensor) -> Tensor:
        """Compute cosines (B, C) in float32 or better, as half precision would round the margin."""
        return _Cosines.apply(F.normalize(descriptors), self.weight)


class ArcFaceHead(CosFaceHead):
    """Cosine classifier with an additive margin on the angle to the correct class (Deng et al., CVPR 2019, eq. 3)."""

    def __init__(self, dim: int, num_classes: int, scale: float, margin: float, *, easy_margin: bool = False) -> None:
        super().__init__(dim, num_classes, scale, margin)
        self.easy_margin = easy_margin

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute logits (B, C) of descriptors (B, D), which need not be normalized."""
        cosines = self._cosines(descriptors)
        correct = cosines.gather(1, labels[:, None])
        sine = (1 - correct.pow(2)).clamp(min=1e-12).sqrt()
        shifted = correct * math.cos(self.margin) - sine * math.sin(self.margin)
        if self.easy_margin:
            shifted = torch.where(correct > 0, shifted, correct)
        else:
            # Past pi - m the cosine of the shifted angle would rise again: continue linearly, so that it keeps falling.
            beyond = correct - math.sin(math.pi - self.margin) * self.margin
            shifted = torch.where(correct > math.cos(math.pi - self.margin), shifted, beyond)
        return cosines.scatter(1, labels[:, None], shifted).mul_(self.scale)


class LinearHead(nn.Module):
    """Linear classifier with a bias and no margin."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, dim)))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute logits (B, C) of descriptors (B, D); `labels` are ignored."""
        return F.linear(descriptors, self.weight, self.bias)


class _Cosines(torch.autograd.Function):
    """Cosines of unit vectors (B, D) and the rows of a weight (C, D), without a second tensor of the weight's size.

    The dot products are divided by the norms of the rows, not the rows themselves. With h = gradient / norm, the
    gradient of a row w is the sum of h x over the batch minus that of h cosine w / norm.
    """

    @staticmethod
    def forward(ctx: Any, units: Tensor, weight: Tensor) -> Tensor:
        products = F.linear(units, weight)
        exact = torch.promote_types(products.dtype, torch.float32)
        inverse_norms = torch.linalg.vector_norm(weight, dim=1, dtype=exact).clamp(min=_MIN_NORM).reciprocal()
        cosines = products.to(exact) * inverse_norms
        ctx.save_for_backward(units, weight, inverse_norms, cosines)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        units, weight, inverse_norms, cosines = ctx.saved_tensors
        scaled = gradient * inverse_norms
        along = -(scaled * cosines).sum(dim=0) * inverse_norms
        along = along.masked_fill(inverse_norms == 1 / _MIN_NORM, 0)
        of_units = scaled @ weight.to(scaled.dtype)
        of_weight = (scaled.T @ units.to(scaled.dtype)).addcmul_(weight, along[:, None])
        return of_units.to(units.dtype), of_weight.to(weight.dtype)
