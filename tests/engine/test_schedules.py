import math

import pytest
import torch

from progeo.engine.schedules import learning_rate_factor, scale_learning_rates


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),  # warm-up ends with the whole rate
        ("cosine", 0, [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]),
        ("cosine", 1, [1, *((1 + math.cos(math.pi * step / 4)) / 2 for step in range(4))]),
        ("cosine", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9]),  # warm-up longer than the training
        ("cosine_epochs", 0, [1, 1, *[(1 + math.cos(math.pi * 2 / 5)) / 2] * 2, (1 + math.cos(math.pi * 4 / 5)) / 2]),
        ("linear", 0, [1, 0.84, 0.68, 0.52, 0.36]),
        ("linear", 1, [1, 1, 0.8, 0.6, 0.4]),
        ("step", 1, [1, 0.25, 0.25, 0.25, 0.25]),
        ("plateau", 0, [0.25] * 5),
        ("loss_plateau", 2, [0.5, 1, 0.25, 0.25, 0.25]),
    ],
)
def test_factors_of_a_training_of_five_steps(schedule, warmup_steps, expected):
    how = {"schedule": schedule, "warmup_steps": warmup_steps, "steps_per_epoch": 2, "decayed": 0.25}
    how["end_factor"] = 0.2
    factors = [learning_rate_factor(step, 5, **how) for step in range(5)]
    assert factors == pytest.approx(expected)


def test_a_line_ends_after_its_steps():
    """As torch's LinearLR from 1 to 0.2 over four steps."""
    how = {"schedule": "linear", "end_factor": 0.2, "decay_steps": 4}
    factors = [learning_rate_factor(step, 9, **how) for step in range(9)]
    assert factors == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2])
    warm = [learning_rate_factor(step, 9, **how, warmup_steps=2) for step in range(9)]
    assert warm == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_every_group_keeps_its_own_rate_as_the_base():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [
        {"params": [weight], "lr": rate, "base_lr": rate} for weight, rate in zip(weights, (1.0, 0.1), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    for factor in (0.5, 0.25):
        scale_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])
