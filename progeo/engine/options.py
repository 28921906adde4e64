"""Named choices of precision, trackers, schedules and kept models."""

from typing import Literal

Precision = Literal["no", "fp16", "bf16"]
Tracker = Literal["tensorboard", "wandb"]
Schedule = Literal["constant", "cosine", "cosine_epochs", "linear", "step", "plateau", "loss_plateau"]
Keep = Literal["best", "last"]
"""Which model a run keeps, also the name of its folder."""
