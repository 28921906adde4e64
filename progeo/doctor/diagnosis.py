"""What is found on a machine, as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from progeo.doctor.disks import Disk
from progeo.doctor.hubs import Hub
from progeo.doctor.packages import Extra, Package
from progeo.printable import plain_table

if TYPE_CHECKING:  # a diagnosis is written also where torch cannot be imported
    from progeo.doctor.fits import Fit
    from progeo.engine.devices import Device


@dataclass(frozen=True)
class Gpus:
    """What the two libraries that use GPUs are built for."""

    pytorch: str
    """Such as `CUDA 12.8`; empty if for none."""
    faiss: int | None
    """Number of GPUs that faiss searches on; None if it is built for none."""


@dataclass(frozen=True)
class Diagnosis:
    """What a machine has, what is missing, and what fits into its memory."""

    progeo: str
    """Version of progeo."""
    python: str
    platform: str
    packages: Sequence[Package]
    """Packages that everything needs."""
    extras: Sequence[Extra]
    devices: "Sequence[Device]"
    """Those that networks run on, the one that commands take first."""
    gpus: Gpus | None
    """None if torch or faiss cannot be imported."""
    disks: Sequence[Disk]
    hubs: Sequence[Hub]
    """Servers of weights; empty if they were not asked."""
    mixed_precision: str
    """Precision of the trainings in `fits`."""
    fits: "Sequence[Fit]"
    """Memory of trainings on the first device."""
    problems: Sequence[str]
    """What must be mended before any command can be relied on."""

    def __str__(self) -> str:
        versions = [[each.name, each.version or "missing", each.required] for each in self.packages]
        disks = [[each.what, str(each.path), _in_gb(each.free_bytes), _writable(each)] for each in self.disks]
        hubs = [[each.address, each.answer, each.weights] for each in self.hubs]
        extras = [[each.name, each.purpose, _missing(each)] for each in self.extras]  # the longest column last
        sections = {
            "packages": _table(versions),
            "devices": [*_table(map(_device, self.devices)), *_gpus(self.gpus)],
            "disks": _table(disks),
            "servers of weights": _table(hubs),
            "extras, installed by pip install 'progeo[NAME]'": _table(extras),
            f"memory of training, {self._precision}": self._training(),
            "problems": self.problems,
        }
        lines = [f"progeo {self.progeo}, Python {self.python}, {self.platform}"]
        for title, content in sections.items():
            if content:
                lines += ["", title, *(f"  {line}" for line in content)]
        return "\n".join(lines)

    @property
    def _precision(self) -> str:
        return "float32" if self.mixed_precision == "no" else self.mixed_precision

    def _training(self) -> list[str]:
        """Write the memory of trainings, in parentheses where it is more than the device has."""
        if not self.fits:
            return []
        device = self.devices[0]
        counts = list(self.fits[0].bytes_by_batch)
        head = ["backbone", "pixels", *(f"batch {count}" for count in counts), "largest batch"]
        rows = [
            [
                fit.architecture,
                str(fit.image_size),
                *(_fitting(fit.bytes_by_batch[count], device.free_bytes) for count in counts),
                f"{fit.max_batch:,}",
            ]
            for fit in self.fits
        ]
        return [
            *plain_table([head, *rows], num_texts=1),
            f"in parentheses: more than the {_in_gb(device.free_bytes)} that are free on {device.name}. Classes of the "
            f"head come on top.",
        ]


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    return plain_table(rows, num_texts=len(rows[0])) if rows else []


def _device(device: "Device") -> list[str]:
    return [device.name, device.what, f"{_in_gb(device.free_bytes)} of {_in_gb(device.total_bytes)} free"]


def _gpus(gpus: Gpus | None) -> list[str]:
    if gpus is None:
        return []
    searches = "has no code for GPUs" if gpus.faiss is None else f"finds {gpus.faiss} GPUs"
    return [f"PyTorch is built for {gpus.pytorch or 'no GPU'}; faiss {searches}"]


def _missing(extra: Extra) -> str:
    return f"missing: {', '.join(extra.missing)}" if extra.missing else "installed"


def _writable(disk: Disk) -> str:
    return "" if disk.is_writable else "cannot be written to"


def _fitting(num_bytes: int, free_bytes: int) -> str:
    return _in_gb(num_bytes) if num_bytes <= free_bytes else f"({_in_gb(num_bytes)})"


def _in_gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
