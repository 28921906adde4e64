"""Colors of the toy city."""

from collections.abc import Sequence

import numpy as np

WALL_COLORS = (
    "#9c4a38 #b5654a #7d3b30 #d8c9a6 #e6dcc6 #c9b48a #8f9aa3 #b9bdbb #6d7780 #a8c0cf #6f93b5 #b7cfa8 #7f9a72 #e3c35f "
    "#d99a4e #e3b6ae #c77f86 #a99bc0 #f0ece2 #5d5048 #8a6b4f #3f5e6b"
).split()
ACCENT_COLORS = "#b3202a #1f5fa8 #1e7d46 #e0a81c #6b2d7a #e2702a #222831 #f2efe6 #1d9aa1 #c2417c".split()
CAR_COLORS = "#d9d9d9 #f4f4f4 #1c1d20 #5b6066 #8c1f22 #24406b #a9a79f #2f4f3c".split()


def rgb(color: str) -> np.ndarray:
    """Convert a color such as #9c4a38 to RGB from 0 to 255, float32 (3,)."""
    return np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)], dtype=np.float32)


def pick(rng: np.random.Generator, colors: Sequence[str]) -> np.ndarray:
    """Return the RGB values of a random one of the `colors`."""
    return rgb(colors[int(rng.integers(len(colors)))])
