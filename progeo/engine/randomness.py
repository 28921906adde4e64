"""Random generators seeded by numbers such as (seed, epoch, step), so that a run can resume reproducibly."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """Create a CPU generator seeded by a combination of numbers, such as (seed, epoch, step)."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def seed_layers(*numbers: int) -> None:
    """Seed torch's global generators on every device, which layers such as stochastic depth draw from."""
    torch.manual_seed(seeded_generator(*numbers).initial_seed())
