"""Locks between processes, which the operating system releases when the process that holds them ends."""

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

import psutil

from progeo.disk import sync

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOGGER = logging.getLogger("progeo")
_FOLDER_LOCK = ".lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Errors of file systems without locks, such as Lustre mounted without them."""
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_CREATE = os.O_RDWR | os.O_CREAT | _NO_LINKS
_MINE = "progeo"
"""First word of a lock file."""
_CONTENTS = (b"", _MINE.encode())


class FolderInUse(OSError):
    """Another process writes to the folder."""


class NoLocks(OSError):
    """The file system, or the operating system, has no locks."""


class Lock:
    """An exclusive lock that this process holds: an open file that names it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        _HELD.add(self)

    def release(self) -> None:
        """Remove the file, have all names in its folder written to the disk, and release the lock."""
        if self.descriptor < 0:  # of the process that this one was forked from
            return
        is_here = False
        with suppress(OSError):
            if is_here := _is_at(self.path, self.descriptor):  # or the folder was moved, and another has its name
                self.path.unlink()  # while it is held: whoever waits for it sees that it is gone, and makes another
        try:
            if is_here:
                sync(self.path.parent)  # while it is open: its inode may be given to another file afterwards
        finally:
            os.close(self.descriptor)
            self.descriptor = -1


_HELD: "WeakSet[Lock]" = WeakSet()


def _forget_locks() -> None:
    """Close the locks that a forked process has inherited, or they would be held until it ends, too."""
    for lock in _HELD:
        if lock.descriptor >= 0:
            os.close(lock.descriptor)
            lock.descriptor = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def try_lock(path: Path) -> Lock | None:
    """Take the lock of a file, which is created if missing; None if another holds it.

    Raises:
        NoLocks: the file system has no locks.
        OSError: the file cannot be created.
    """
    if fcntl is None:  # before a file is made, as Windows removes none that is open
        raise NoLocks(errno.ENOSYS, "no locks")
    while True:
        descriptor, is_own = _opened(path)
        try:
            if not _try(descriptor):
                os.close(descriptor)
                return None
            if os.pread(descriptor, len(_MINE), 0) not in _CONTENTS:
                raise _not_ours(path)
            if _is_at(path, descriptor) and (is_own or not _removed(path)):
                if is_own:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{_MINE} {socket.gethostname()} {os.getpid()}\n".encode())
                return Lock(path, descriptor)
        except BaseException as error:
            if isinstance(error, NoLocks) and is_lock_file(path):
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed before it was locked, or is that of another user, who has ended


def is_lock_file(path: Path) -> bool:
    """Return whether a file is empty or has the content of a lock of ours."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MINE)) in _CONTENTS
    except OSError:
        return False


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: folder that this process alone may write to.
        wait: wait until another process has released the lock.

    Raises:
        FolderInUse: another process holds it, and `wait` is off; the message names it.
        OSError: the folder does not exist or cannot be written to.
    """
    lock = _lock_of(folder, wait=wait)
    if lock is None:
        raise FolderInUse(f"{folder} is in use by {_holder(folder)}: let it end, or set `wait` to wait for it.")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder whose files several processes may write to at once; log who else does.

    Args:
        folder: a folder; one that does not exist is not locked.
        wait: wait until the other process is done, instead of doing its work again beside it.
    """
    lock = _lock_of(folder, wait=wait) if folder.is_dir() else _NoLock()
    if lock is None:
        _LOGGER.info("%s is also written to by %s: `wait` would wait for it", folder, _holder(folder))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def was_locked(folder: Path) -> bool:
    """Return whether a folder that this process may write to is locked, or was by a process that was killed."""
    return (folder / _FOLDER_LOCK).exists() and os.access(folder, os.W_OK)


def may_be_held(folder: Path) -> bool:
    """Return whether a process may hold the lock of a folder, without trying to take it, which could refuse another."""
    try:
        _, host, number = (folder / _FOLDER_LOCK).read_text(encoding="utf-8").split()
    except OSError:
        return False
    except ValueError:  # it is just being taken
        return is_lock_file(folder / _FOLDER_LOCK)
    return host != socket.gethostname() or _lives(number)


class _NoLock(Lock):
    """Stands for a lock where there is none to take."""

    def __init__(self) -> None:
        self.descriptor = -1


def _lock_of(folder: Path, *, wait: bool) -> Lock | None:
    """Take the lock of a folder; None if another process holds it and `wait` is off."""
    path, waits = folder / _FOLDER_LOCK, False
    try:
        while (lock := try_lock(path)) is None and wait:
            if not waits:
                _LOGGER.info("waiting for %s, which writes to %s", _holder(folder), folder)
            waits = True
            time.sleep(0.2)
    except NoLocks:
        _LOGGER.warning("%s is on a file system without locks: take care that no other process writes to it", folder)
        return _NoLock()
    except OSError as error:
        raise OSError(f"{folder} could not be written to: {error.strerror}") from None
    if lock is not None:
        with suppress(OSError):  # no promise depends on it
            os.fsync(lock.descriptor)  # or, after a loss of power, its name may be that of a file that was removed
    return lock


def _holder(folder: Path) -> str:
    """Name the process that holds the lock of a folder."""
    try:
        _, host, number = (folder / _FOLDER_LOCK).read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # it is just being taken or released
        return "another process"
    if host == socket.gethostname() and not _lives(number):  # it has the name of a killed one
        return "another process"
    return f"process {number} on {host}"


def _lives(number: str) -> bool:
    """Return whether there is a process of this number on this machine."""
    try:
        return psutil.pid_exists(int(number))
    except (ValueError, OverflowError):
        return False


def _opened(path: Path) -> tuple[int, bool]:
    """Open a lock file, which is created if missing, and return whether it can be written: not that of another user."""
    if path.is_symlink():
        raise _not_ours(path)
    try:
        return os.open(path, _CREATE, 0o666), True
    except PermissionError:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | _NO_LINKS), False
        return os.open(path, _CREATE, 0o666), True  # it was removed just now, or the folder is read-only


def _not_ours(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"its {path.name} is not a lock of progeo", str(path))


def _removed(path: Path) -> bool:
    """Remove a file if the folder allows it; returns whether it did."""
    try:
        path.unlink()
    except PermissionError:
        return False
    return True


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            raise NoLocks(error.errno, error.strerror) from None
        raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one at this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
