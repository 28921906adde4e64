"""The precision of a training in words, for the logs of both stages."""

import torch
from accelerate import Accelerator

from progeo.engine.precision import half_precision_gain
from progeo.models.backbones.attention import SLOW_BACKWARD


def precision_in_words(accelerator: Accelerator) -> str:
    """Return the precision of a training, what it gives on its device, and which attention is chosen for it."""
    gain = half_precision_gain(accelerator)
    words = "float32" if accelerator.mixed_precision == "no" else f"{accelerator.mixed_precision} mixed with float32"
    if gain is not None:
        words += f", in which this CPU multiplies matrices {gain:.1f} times as fast as in float32"
        words += "" if gain > 1 else " (float32 is the faster here: set mixed_precision no)"
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    limit = SLOW_BACKWARD.get((accelerator.device.type, dtype))
    if limit:
        words += f"; attention to up to {limit} tokens by its formula, whose backward pass is faster than flash"
    return words
