"""The devices of this machine and their memory."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from progeo.cores import usable_cores

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux has the limits of containers and of jobs of a cluster, and which of these this process is in."""


@dataclass(frozen=True)
class Device:
    """A device that networks run on."""

    name: str
    """Such as `cuda:0`."""
    what: str
    """The model of a GPU, or the number of cores."""
    total_bytes: int
    free_bytes: int
    """Memory that no process uses."""


def list_devices() -> list[Device]:
    """List the devices, the one that commands run on first."""
    total, free = main_memory()
    cores = usable_cores()
    main = Device("cpu", f"{cores} core{'' if cores == 1 else 's'}", total, free)
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return [main]
    if found.type != "cuda":  # on a Mac, the GPU shares the main memory
        return [Device(found.type, "GPU", total, free), main]
    return [*map(_gpu, range(torch.cuda.device_count())), main]


def _gpu(index: int) -> Device:
    free, total = torch.cuda.mem_get_info(index)
    return Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free)


def free_memory(device: torch.device) -> int:
    """Return the memory of a device that no process uses, in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else main_memory()[1]


def built_for() -> str:
    """Return which GPUs PyTorch is built for, such as `CUDA 12.8`; empty if for none."""
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    return next((f"{name} {version}" for name, version in versions.items() if version), "")


def main_memory(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> tuple[int, int]:
    """Return the total and the free main memory in bytes, of the machine or of the container or job of this process."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for cgroup in _with_parents(cgroups, own):
        with suppress(OSError, ValueError):  # one without a limit
            limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
            rows = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
            # Cached files that nobody uses make room when memory is needed.
            used = int((cgroup / "memory.current").read_text(encoding="ascii")) - int(rows.get("inactive_file", 0))
            total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _with_parents(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the control group (version 2) of a process and of those around it, whose limits hold too."""
    yield cgroups
    with suppress(OSError, ValueError):
        name = next((line[4:] for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::/")), "")
        for part in Path(name).parts:
            cgroups /= part
            yield cgroups
