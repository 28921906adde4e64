"""Adam for tables of which a step uses a few rows."""

from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Adam):
    """Fused Adam for sparse gradients of rows, which gives the same bits as with dense gradients.

    Rows without a gradient still move by their momentum, unlike those of `torch.optim.SparseAdam`, so that each step
    updates the whole table. What it saves is a new dense gradient in every step: one of zeros is kept, and holds the
    rows of a step only while that is taken.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, fused=True)
        self._dense: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        sparse = {
            parameter: parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        }
        for parameter, gradient in sparse.items():
            if parameter not in self._dense:
                self._dense[parameter] = torch.zeros_like(parameter)
            parameter.grad = self._dense[parameter].index_add_(0, gradient._indices()[0], gradient._values())
        loss = super().step(closure)
        for parameter, gradient in sparse.items():
            self._dense[parameter].index_fill_(0, gradient._indices()[0], 0)
            parameter.grad = gradient
        return loss
