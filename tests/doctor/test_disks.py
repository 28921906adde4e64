import os
import shutil
from pathlib import Path

import pytest

from progeo.doctor.disks import list_disks


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_nearest_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list_disks({"cache": Path("runs/cache"), "root": Path("/")})
    assert [(each.what, each.path) for each in found] == [("cache", Path("runs/cache")), ("root", Path("/"))]
    assert found[0].is_writable
    assert abs(found[0].free_bytes - shutil.disk_usage(tmp_path).free) < 10**9
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_one_may_not_look_into_cannot_be_written_to(tmp_path):
    closed = tmp_path / "closed"
    (closed / "cache").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            pytest.skip("the folder of tests is closed to others")
    closed.chmod(0o700)
    if (child := os.fork()) == 0:
        os.setuid(65534)
        os._exit(list_disks({"cache": closed / "cache"})[0].is_writable)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
