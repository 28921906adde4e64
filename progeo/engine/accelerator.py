"""Where and how precisely a run computes, by Accelerate: the only place that knows devices."""

from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

Precision = Literal["no", "fp16", "bf16"]

# Processes that work apart may wait long for one that had more to do.
_LONGEST_WAIT = timedelta(days=30)


def start_accelerator(mixed_precision: Precision) -> Accelerator:
    """Take the devices there are, in this precision, whatever an earlier run of the same process had."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)])


def fits_device(num_bytes: int, accelerator: Accelerator) -> bool:
    """Whether data of this size may stay on the device, in at most half of what is free there.

    A CPU has no memory of its own: files mapped into memory are where it needs them.
    """
    if accelerator.device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    return num_bytes <= free // 2


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """The loss scale of fp16; None in other precisions."""
    return None if accelerator.scaler is None else accelerator.scaler.state_dict()


def set_scaler_state(accelerator: Accelerator, state: dict[str, Any] | None) -> None:
    """Take over a loss scale; None starts with a fresh one."""
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state or type(accelerator.scaler)().state_dict())
