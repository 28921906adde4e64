"""Where and how precisely a run computes, by Accelerate: the only place that knows devices."""

from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState

Precision = Literal["no", "fp16", "bf16"]


def start_accelerator(mixed_precision: Precision) -> Accelerator:
    """Take the devices there are, in this precision, whatever an earlier run of the same process had."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision)
