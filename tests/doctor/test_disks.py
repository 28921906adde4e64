import shutil
from pathlib import Path

from progeo.doctor.disks import list_disks


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_nearest_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list_disks({"cache": Path("runs/cache"), "root": Path("/")})
    assert [(each.what, each.path) for each in found] == [("cache", Path("runs/cache")), ("root", Path("/"))]
    assert found[0].is_writable
    assert abs(found[0].free_bytes - shutil.disk_usage(tmp_path).free) < 10**9
    assert not any(tmp_path.iterdir())
