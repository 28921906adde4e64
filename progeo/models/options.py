"""Options of models that settings name; no torch."""

from typing import Literal

Preprocessing = Literal["hard_resize", "single_query", "central_crop", "five_crops", "native"]
"""How an image is preprocessed for one descriptor; names of the benchmark of Berton et al. (CVPR 2022)."""
QueryPreprocessing = Literal[
    "hard_resize", "single_query", "central_crop", "five_crops", "nearest_crop", "maj_voting", "native"
]
"""How a query image is preprocessed; with `nearest_crop` and `maj_voting` each crop is searched on its own."""
