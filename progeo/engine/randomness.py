"""Random generators that depend on numbers alone, so that a run can be repeated from any point."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU for one combination of numbers, such as (seed, epoch, step)."""
    return torch.Generator().manual_seed(_seed(numbers))


def seed_layers(*numbers: int) -> None:
    """Let layers that choose at random, such as dropout, depend on these numbers alone."""
    torch.manual_seed(_seed(numbers))


def _seed(numbers: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
