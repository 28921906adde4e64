import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from progeo.locks import FolderInUse, NoLocks, locked, locked_if_free, try_lock

HOLD = """
import sys, time
from pathlib import Path
from progeo.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_with_the_host_and_the_process(tmp_path, holder):
    sentence = rf"^{tmp_path} is in use by process {holder.pid} on {os.uname().nodename}: let it end, or set `wait`"
    with pytest.raises(FolderInUse, match=sentence), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", ["ended", "0x1", "9" * 30, ""])
def test_a_process_that_has_ended_is_not_named_as_the_one_that_holds_a_lock(tmp_path, number):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = try_lock(tmp_path / ".lock")  # of a killed process, and just taken: its content is still the former
    (tmp_path / ".lock").write_text(f"progeo {os.uname().nodename} {number.replace('ended', str(ended.pid))}\n")
    with pytest.raises(FolderInUse, match=rf"^{tmp_path} is in use by another process: let it end"), locked(tmp_path):
        pass
    lock.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_whoever_waits_gets_the_lock_when_it_is_released(tmp_path, holder, caplog):
    threading.Timer(0.5, holder.kill).start()
    start = time.monotonic()
    with caplog.at_level(logging.INFO, "progeo"), locked(tmp_path, wait=True):
        assert time.monotonic() - start > 0.4
    assert f"waiting for process {holder.pid}" in caplog.text


def test_a_lock_is_on_the_disk_and_is_gone_from_it_before_its_inode_is_free(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        is_open = any(os.path.realpath(link) == removed for link in Path("/proc/self/fd").iterdir())
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), is_open, (tmp_path / ".lock").exists()))

    removed = f"{tmp_path}/.lock (deleted)"
    monkeypatch.setattr(os, "fsync", fsync)
    for lock in (locked, locked_if_free):
        with lock(tmp_path):
            assert synced == [(tmp_path / ".lock", False, True)]
            synced.clear()
        assert synced == [(tmp_path, True, False)]
        synced.clear()


def test_a_shared_folder_in_use_is_written_to_beside_the_other(tmp_path, holder, caplog):
    with caplog.at_level(logging.INFO, "progeo"), locked_if_free(tmp_path):
        assert f"{tmp_path} is also written to by process {holder.pid} on" in caplog.text
    assert (tmp_path / ".lock").exists()  # that of the other


def test_a_lock_is_not_held_by_a_child_that_outlives_its_process(tmp_path):
    lock = try_lock(tmp_path / "x")
    child = os.fork()
    if child == 0:
        lock.release()  # as by the exit of a context of the parent
        time.sleep(30)
        os._exit(0)
    try:
        assert try_lock(tmp_path / "x") is None
        lock.release()
        again = try_lock(tmp_path / "x")
        assert again is not None
        again.release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("progeo.locks.fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        assert "is on a file system without locks" in caplog.text
    assert not list(tmp_path.iterdir())


def test_no_file_is_opened_where_the_system_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.locks.fcntl", None)
    with pytest.raises(NoLocks):  # and no error about the folder
        try_lock(tmp_path / "missing" / ".lock")


def test_a_lock_of_another_user_counts_while_it_is_held_and_is_replaced_afterwards(open_folder, as_nobody, caplog):
    open_folder.chmod(0o777)
    (open_folder / ".lock").touch(0o600 if os.geteuid() else 0o644)
    with locked(open_folder), as_nobody(), pytest.raises(FolderInUse), locked(open_folder):
        pass
    (open_folder / ".lock").write_text("progeo elsewhere 1\n")
    with as_nobody(), locked(open_folder):
        assert f"{os.getpid()}" in (open_folder / ".lock").read_text()
    assert not list(open_folder.iterdir())
    (open_folder / ".lock").write_text("progeo elsewhere 1\n")
    open_folder.chmod(0o1777)  # nobody may remove the files of others
    with as_nobody(), locked(open_folder), pytest.raises(FolderInUse), locked(open_folder):
        pass


def test_the_lock_of_a_folder_that_was_moved_does_not_take_that_of_its_successor(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        second = locked(folder)
        second.__enter__()
    with pytest.raises(FolderInUse), locked(folder):
        pass
    second.__exit__(None, None, None)


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("has_locks", [False, True])
def test_a_file_of_the_user_is_not_taken_for_a_lock(tmp_path, is_link, has_locks, monkeypatch):
    mine = tmp_path / ("mine" if is_link else ".lock")
    mine.write_text("mine")
    if is_link:
        (tmp_path / ".lock").symlink_to("mine")
    if not has_locks:
        monkeypatch.setattr("progeo.locks.fcntl", None)
    with suppress(OSError), locked(tmp_path):
        pass
    assert mine.read_text() == "mine"
    if has_locks:
        sentence = rf"^{tmp_path} could not be written to: its \.lock is not a lock of progeo$"
        with pytest.raises(OSError, match=sentence), locked_if_free(tmp_path):
            pass
