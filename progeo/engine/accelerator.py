"""Where and how precisely a run computes, by Accelerate: the only place that knows devices."""

from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Precision = Literal["no", "fp16", "bf16"]

# Processes that work apart may wait long for one that had more to do.
_LONGEST_WAIT = timedelta(days=30)


def start_accelerator(mixed_precision: Precision) -> Accelerator:
    """Take the devices there are, in this precision, whatever an earlier run of the same process had."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)])


def distributed(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module itself, or one that averages its gradients over all processes."""
    if accelerator.num_processes == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return DistributedDataParallel(module)


def share_of(count: int, accelerator: Accelerator) -> range:
    """Which of 0..count-1 this process works on."""
    size = -(-count // accelerator.num_processes)
    return range(count)[accelerator.process_index * size : (accelerator.process_index + 1) * size]


def gathered(rows: np.ndarray, count: int, accelerator: Accelerator) -> np.ndarray:
    """Put together what all processes computed for their `share_of` count rows, (n, D) each -> (count, D)."""
    if accelerator.num_processes == 1:
        return rows
    padded = np.zeros((-(-count // accelerator.num_processes), rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return accelerator.gather(torch.from_numpy(padded).to(accelerator.device))[:count].cpu().numpy()


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
