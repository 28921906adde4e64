"""Options of extracting features: batch size, workers and precision, and the cache."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from progeo.engine.options import Precision


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """Options of running a network over images."""

    batch_size: PositiveInt = 64
    """Number of images per batch; fewer if the images have more pixels than the encoder's image size."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Number of processes that decode images."""
    mixed_precision: Precision = "no"
    """Precision of the encoder."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings(WorkSettings):
    """Options of caching descriptors on disk."""

    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Cache folder for descriptors, which are reused when the same encoder runs on the same images again."""
    keep_as: Literal["float32", "float16"] = "float32"
    """Precision of the cached descriptors."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Maximum fraction of unreadable images in a folder, from 0 to 1; at least one is allowed. Unreadable images are
    reported and skipped; above this fraction the command stops. 0 allows none."""
