"""Options of running networks that settings name; no torch."""

from typing import Literal

Precision = Literal["no", "fp16", "bf16"]
"""Precision of networks: "no" computes in float32."""
Tracker = Literal["tensorboard", "wandb"]
"""Experiment tracker."""
