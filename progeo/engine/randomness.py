"""Random generators that depend on numbers alone, so that a run can be repeated from any point."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU for one combination of numbers, such as (seed, epoch, step)."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
