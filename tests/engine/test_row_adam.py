"""Adam with sparse gradients, compared with dense ones to the last bit."""

import copy

import pytest
import torch

from progeo.engine.row_adam import RowAdam

SHAPE = (20, 2, 3)


def gradients(step, *, repeated=False):
    """A sparse gradient of some rows, and the same dense."""
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(20, generator=generator)[: step % 4]
    if repeated:
        indices = torch.cat([indices, indices[:1]])
    values = torch.randn(len(indices), 2, 3, generator=generator)
    sparse = torch.sparse_coo_tensor(indices[None], values, SHAPE, check_invariants=True)
    return sparse, sparse.to_dense()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("repeated", [False, True])
def test_rows_without_a_gradient_move_as_with_dense_gradients_also_when_resumed(repeated, device):
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    tables = [torch.nn.Parameter(start.clone()) for _ in range(3)]
    optimizers = [RowAdam([{"params": [table], "lr": 0.1}]) for table in tables[:2]]
    optimizers.append(torch.optim.Adam([tables[2]], lr=0.1, fused=True))
    for step in range(9):
        sparse, dense = (each.to(device) for each in gradients(step, repeated=repeated))
        if step == 5:
            optimizers[1] = RowAdam([{"params": [tables[1]], "lr": 0.1}])
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for table, optimizer, gradient in zip(tables, optimizers, (sparse, sparse, dense), strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            table.grad = gradient
            optimizer.step()
        assert tables[0].grad.is_sparse
    assert torch.equal(tables[0], tables[2]) and torch.equal(tables[1], tables[2])
    assert (tables[2] != start).any(dim=(1, 2)).sum() > 3  # the most rows of a step
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert all(torch.equal(states[0][0][name], states[2][0][name]) for name in states[2][0])


def test_a_dense_gradient_is_taken_as_it_is():
    ours, plain = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    for table, optimizer in (
        (ours, RowAdam([{"params": [ours], "lr": 0.1}])),
        (plain, torch.optim.Adam([plain], lr=0.1, fused=True)),
    ):
        table.grad = torch.tensor([1.0, 0.0, -2.0])
        optimizer.step()
    assert torch.equal(ours, plain) and not torch.equal(ours, torch.ones(3))
