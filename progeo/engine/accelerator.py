"""Devices, precision and processes of a run, through Accelerate; no other module handles devices."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from progeo.engine.options import Precision, Tracker
from progeo.engine.run_folder import flat_settings

# Processes that work independently may have to wait long for the slowest one.
_LONGEST_WAIT = timedelta(days=30)
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def start_accelerator(
    mixed_precision: Precision, *, trackers: Sequence[Tracker] = (), folder: Path | None = None
) -> Accelerator:
    """Start Accelerate on the available devices, discarding its state from an earlier run in the same process.

    Args:
        mixed_precision: precision of the networks.
        trackers: experiment trackers that log the run.
        folder: where trackers write their files.

    Raises:
        ValueError: a tracker that is not installed, or fp16 without a GPU.
    """
    missing = set(trackers) - {str(available) for available in get_available_trackers()}
    if missing:
        raise ValueError(f"trackers names {', '.join(sorted(missing))}, not installed: pip install 'progeo[track]'.")
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    if accelerator.num_processes == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "Several processes were started, but each would work alone: set ACCELERATE_USE_CPU=true, or use GPUs."
        )
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
        raise ValueError("`mixed_precision` fp16 needs a GPU, and there is none: give bf16 or no.")
    return accelerator


@dataclass(frozen=True)
class Processor:
    """A device and a precision for inference, without the state that Accelerate keeps once for a process."""

    device: torch.device
    mixed_precision: Precision = "no"


def choose_processor(device: str | None = None, mixed_precision: Precision = "no") -> Processor:
    """Choose where networks run: a device such as `cuda:1`, or None for the GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device, or fp16 without a GPU.
    """
    found = None if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.accelerator.current_accelerator(True)
    try:
        chosen = torch.device(device or found or "cpu")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # which of them depends on how PyTorch was built
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"`device` {device} cannot be used: {reason}. Use for example cpu or cuda:0.") from None
    if mixed_precision == "fp16" and chosen.type == "cpu":
        raise ValueError("`mixed_precision` fp16 needs a GPU, and there is none: give bf16 or no.")
    return Processor(chosen, mixed_precision)


def start_trackers(accelerator: Accelerator, run: str, *, settings: Mapping[str, Any], steps_done: int) -> None:
    """Start the trackers of `accelerator` for a run with these settings, which resumes after `steps_done` steps."""
    flat = flat_settings(settings).items()
    plain = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in flat}
    tensorboard = {"purge_step": steps_done + 1 if steps_done else 0}  # what came later will be logged again
    wandb = {"name": run, "dir": accelerator.project_dir}
    accelerator.init_trackers("progeo", plain, {"tensorboard": tensorboard, "wandb": wandb})


def distributed(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes; unchanged if there is only one process.

    On GPUs batch norm is synchronized over all processes, which PyTorch does not support on a CPU. A module without
    trainable parameters is returned unchanged.
    """
    if accelerator.num_processes == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    if accelerator.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    wrapped = DistributedDataParallel(module)
    # Buffers other than those of batch norm are constants. The argument of this name is deprecated in PyTorch 2.14.
    wrapped.broadcast_buffers = any(isinstance(part, _BatchNorm) for part in module.modules())
    return wrapped


def copy_from_main_process(module: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the parameters and buffers of the main process, which each computed alike but for rounding."""
    if accelerator.num_processes > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor.detach(), src=0)


def autocast(processor: Accelerator | Processor) -> AbstractContextManager:
    """Run networks at the precision of a processor inside this context, which costs less than Accelerate's own."""
    dtype = _AUTOCAST.get(processor.mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(processor.device.type, dtype)


@contextmanager
def full_precision(processor: Accelerator | Processor) -> Iterator[None]:
    """Disable autocast and TF32 inside this context, so that losses are computed in float32."""
    with float32_products(tf32=False), torch.autocast(processor.device.type, enabled=False):
        yield


@contextmanager
def float32_products(*, tf32: bool, benchmark: bool | None = None) -> Iterator[None]:
    """Choose how a GPU computes float32 matrix products and convolutions inside this context.

    Args:
        tf32: round their factors to the 10 bits of TF32, which is several times as fast.
        benchmark: measure which algorithm of a convolution is the fastest; None leaves that as it is.
    """
    cudnn: Any = torch.backends.cudnn
    kinds = torch.backends.cuda.matmul, cudnn.conv
    before, benchmark_before = [kind.fp32_precision for kind in kinds], cudnn.benchmark
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        cudnn.benchmark = benchmark_before if benchmark is None else benchmark
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
        cudnn.benchmark = benchmark_before


def gathered_with_gradient(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Gather the rows (n, D) of all processes, in process order, for a loss that every process computes alike.

    The gradient flows only through a process's own rows, multiplied by the number of processes: after `distributed`
    modules average their gradients, the result is the gradient of the loss over all rows.
    """
    if accelerator.num_processes == 1:
        return rows
    parts = list(accelerator.gather(rows.detach()).split(len(rows)))
    mine = rows.clone()
    mine.register_hook(lambda gradient: gradient * accelerator.num_processes)
    parts[accelerator.process_index] = mine
    return torch.cat(parts)


def of_main_process(value: Any) -> Any:
    """Broadcast a value from the main process to all processes; values of the others are ignored."""
    return broadcast_object_list([value])[0]


def share_of(count: int, accelerator: Accelerator) -> range:
    """Return the contiguous range of the indexes 0..count-1 that this process works on."""
    size = -(-count // accelerator.num_processes)
    return range(count)[accelerator.process_index * size : (accelerator.process_index + 1) * size]


def gathered(rows: np.ndarray, count: int, accelerator: Accelerator) -> np.ndarray:
    """Gather the rows (n, D) that each process computed for its `share_of(count)` into (count, D)."""
    if accelerator.num_processes == 1:
        return rows
    padded = np.zeros((-(-count // accelerator.num_processes), rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return accelerator.gather(torch.from_numpy(padded).to(accelerator.device))[:count].cpu().numpy()


def fits_device(num_bytes: int, accelerator: Accelerator) -> bool:
    """Return whether data of this size fits in half of the free memory of the GPU.

    False on a CPU, which has no separate memory: memory-mapped files need no copy.
    """
    if accelerator.device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    return num_bytes <= free // 2


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the state of the fp16 gradient scaler; None in other precisions."""
    return None if accelerator.scaler is None else accelerator.scaler.state_dict()


def set_scaler_state(accelerator: Accelerator, state: dict[str, Any] | None) -> None:
    """Restore the state of the fp16 gradient scaler; None resets it. Does nothing in other precisions."""
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state or type(accelerator.scaler)().state_dict())
