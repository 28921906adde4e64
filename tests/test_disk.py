import os
from pathlib import Path

import pytest

from progeo.disk import remove_folder, synced_when_removed


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced from now on; those of removed folders end with ` (deleted)`."""
    paths = []
    monkeypatch.setattr(os, "fsync", lambda at: paths.append(str(Path(f"/proc/self/fd/{at}").readlink())))
    return paths


def test_a_removed_folder_is_synced_with_those_in_it_but_no_link_is_followed(tmp_path, synced):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "a/link").symlink_to(tmp_path / "mine")
    remove_folder(tmp_path / "a")
    assert synced == [f"{tmp_path}/a/b (deleted)", f"{tmp_path}/a (deleted)"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_another_replaces_is_synced(tmp_path, synced):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    with synced_when_removed(tmp_path / "old"):
        (tmp_path / "new").rename(tmp_path / "old")
    assert synced == [f"{tmp_path}/old (deleted)"]
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "none")
    remove_folder(tmp_path / "none", ignore_errors=True)
