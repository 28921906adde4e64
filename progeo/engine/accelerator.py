"""Where and how precisely a run computes, by Accelerate: the only place that knows devices."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from progeo.engine.run_folder import flat_settings

Precision = Literal["no", "fp16", "bf16"]
Tracker = Literal["tensorboard", "wandb"]

# Processes that work apart may wait long for one that had more to do.
_LONGEST_WAIT = timedelta(days=30)


def start_accelerator(
    mixed_precision: Precision, *, trackers: Sequence[Tracker] = (), folder: Path | None = None
) -> Accelerator:
    """Take the devices there are, in this precision, whatever an earlier run of the same process had.

    Args:
        mixed_precision: of the networks.
        trackers: who is told of a run, in `folder` where they write files.

    Raises:
        ValueError: a tracker that is not installed, or fp16 where nothing can compute in it.
    """
    missing = set(trackers) - {str(available) for available in get_available_trackers()}
    if missing:
        raise ValueError(f"trackers names {', '.join(sorted(missing))}, not installed: pip install -e '.[track]'.")
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
        raise ValueError("mixed_precision fp16 needs a GPU, and there is none: give bf16 or no.")
    return accelerator


def start_trackers(accelerator: Accelerator, run: str, *, settings: Mapping[str, Any], steps_done: int) -> None:
    """Tell the trackers of `accelerator` of a run, its settings and from where it goes on."""
    flat = flat_settings(settings).items()
    plain = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in flat}
    tensorboard = {"purge_step": steps_done + 1} if steps_done else {}  # later steps are going to be told again
    wandb = {"name": run, "dir": accelerator.project_dir}
    accelerator.init_trackers("progeo", plain, {"tensorboard": tensorboard, "wandb": wandb})


def distributed(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module itself, or one that averages its gradients over all processes.

    On GPUs batch norm then sees the images of all processes; PyTorch cannot do that on a CPU.
    """
    if accelerator.num_processes == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    if accelerator.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module)


def full_precision(accelerator: Accelerator) -> AbstractContextManager:
    """Compute what is inside in float32, whatever the precision of the networks."""
    return accelerator.autocast(AutocastKwargs(enabled=False))


def gathered_with_gradient(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """The rows (n, D) of all processes in their order, for a loss that all compute alike.

    Each process lets the gradient through its own rows alone, times the number of processes: `distributed` modules then
    average to the gradient of the whole.
    """
    if accelerator.num_processes == 1:
        return rows
    parts = list(accelerator.gather(rows.detach()).split(len(rows)))
    mine = rows.clone()
    mine.register_hook(lambda gradient: gradient * accelerator.num_processes)
    parts[accelerator.process_index] = mine
    return torch.cat(parts)


def of_main_process(value: Any) -> Any:
    """What the main process has; what the others have does not matter."""
    return broadcast_object_list([value])[0]


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
