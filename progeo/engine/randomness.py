"""Random generators that depend on numbers alone, so that a run can be repeated from any point."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU for one combination of numbers, such as (seed, epoch, step)."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def seed_layers(*numbers: int) -> None:
    """Seed torch's own generators on every device: layers such as stochastic depth draw from them."""
    torch.manual_seed(seeded_generator(*numbers).initial_seed())
