"""Have the operating system write files, names and removals to the disk, so that they survive a loss of power.

Without a journal, a removed name or folder stays on the disk until it is written again. If its inode or blocks belong
to another folder by then, a repair (`e2fsck`) may take that one apart after a loss of power: removals are synced, too.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    if path.is_dir() and (os.name == "nt" or not os.access(path, os.R_OK)):  # which cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and write their names to the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in (*missing[:1], *(each.parent for each in missing)):  # or its name could be that of a removed file
        sync(each)


def nearest_folder(path: Path) -> Path:
    """Return a path if it is a folder, or else the nearest folder above it, in which it would be created."""
    # Unlike `Path.is_dir`, this passes over folders that one may not look into.
    there = (each for each in (path.absolute(), *path.absolute().parents) if os.path.isdir(each))  # noqa: PTH112
    return next(there, Path(path.absolute().anchor))


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and all that is in it, and write to the disk that it is gone; its name there needs a `sync`."""
    with synced_when_removed(folder):
        with suppress(OSError):
            for each in folder.iterdir():
                if each.is_dir() and not each.is_symlink():
                    remove_folder(each, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=ignore_errors)


@contextmanager
def synced_when_removed(folder: Path) -> Iterator[None]:
    """Keep a folder open while the block removes it, so that nobody gets its inode and blocks until that is synced."""
    with ExitStack() as stack:
        with suppress(OSError):  # on Windows, or if this user cannot read it
            stack.callback(_sync_and_close, os.open(folder, os.O_RDONLY))
        yield


def _sync_and_close(descriptor: int) -> None:
    with suppress(OSError):  # no promise depends on it
        os.fsync(descriptor)
    os.close(descriptor)
