"""Free space where commands write."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from progeo.disk import nearest_folder

SHARED_MEMORY = Path("/dev/shm")
"""Where worker processes of PyTorch share batches on Linux; Docker gives it 64 MB unless asked for more."""


@dataclass(frozen=True)
class Disk:
    """A place where commands write."""

    what: str
    path: Path
    free_bytes: int
    is_writable: bool


def list_disks(places: Mapping[str, Path]) -> list[Disk]:
    """Look at places by what they are for; a folder that does not exist yet would be created in its nearest parent."""
    return [_disk(what, path) for what, path in places.items()]


def _disk(what: str, path: Path) -> Disk:
    there = nearest_folder(path)
    return Disk(what, path, shutil.disk_usage(there).free, os.access(there, os.W_OK))
