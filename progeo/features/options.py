"""Options of extracting features: with what means, and where they are kept."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from progeo.engine.accelerator import Precision


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """With what means images are described."""

    batch_size: PositiveInt = 64
    """Images a batch; fewer where they have more pixels than the encoder's size."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Processes that decode images."""
    mixed_precision: Precision = "no"
    """Precision of the encoder."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings(WorkSettings):
    """Where descriptors are kept."""

    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Folder where descriptors are kept for the next time that the same encoder describes the same images."""
    keep_as: Literal["float32", "float16"] = "float32"
    """Precision of the descriptors that are kept."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Images that cannot be read are reported and skipped, up to this fraction of a folder, one at least; above it, the
    command stops. 0 allows none."""
