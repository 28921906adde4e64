import os
from pathlib import Path

import pytest

from progeo.disk import nearest_folder, remove_folder, synced_when_removed


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


@pytest.mark.skipif(os.name == "nt", reason="folders of Windows are closed in other ways")
def test_the_nearest_folder_is_found_above_one_that_may_not_be_looked_into(tmp_path):
    (tmp_path / "closed/cache").mkdir(parents=True)
    assert nearest_folder(tmp_path / "closed/cache/a/b") == tmp_path / "closed/cache"
    (tmp_path / "closed").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # for whom the folders above may be closed, too
        found = nearest_folder(tmp_path / "closed/cache")
    finally:
        os.seteuid(user)
        (tmp_path / "closed").chmod(0o700)
    assert found in (tmp_path / "closed", *tmp_path.parents)


def test_a_folder_that_another_replaces_is_synced(tmp_path, synced):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    with synced_when_removed(tmp_path / "old"):
        (tmp_path / "new").rename(tmp_path / "old")
    assert synced == [f"{tmp_path}/old (deleted)"]
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "none")
    remove_folder(tmp_path / "none", ignore_errors=True)
