"""Images for the benchmarks."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, side: int) -> None:
    """Write smooth random JPEGs with valid catalogue names."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"@{index}@0@.jpg", quality=90)
