import errno
import json
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from running import killed_at

from progeo.atomic import remove_abandoned, replacing, replacing_folder, written_together
from progeo.files import write_text
from progeo.locks import try_lock


@pytest.mark.parametrize("writer", [replacing, written_together])
@pytest.mark.parametrize("name", ["set.arrow", "new/set.arrow"])
def test_what_cannot_be_written_is_named_as_it_was_to_be_called(open_folder, as_nobody, writer, name):
    sentence = rf"^{open_folder}/{name} could not be written: Permission denied$"
    with as_nobody(), pytest.raises(OSError, match=sentence), ExitStack() as stack:
        stack.enter_context(writer(open_folder / name))


def test_a_file_that_cannot_be_finished_is_named_as_it_was_to_be_called(tmp_path):
    path = tmp_path / "set.arrow"
    with pytest.raises(OSError) as error, replacing(path) as temporary:
        temporary.unlink()
    assert str(error.value) == f"{path} could not be written: [Errno 2] No such file or directory: '{path}'"


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_an_error_names_a_file_as_it_would_lie_in_its_folder(tmp_path, kind):
    with pytest.raises(kind) as error, written_together(tmp_path / "model") as folder:
        raise kind(f"{folder / 'model.pt2'} is not written")
    assert str(error.value) == f"{tmp_path}/model/model.pt2 is not written"
    assert not list(tmp_path.iterdir())


def names(folder):
    return {path.name for path in folder.iterdir()}


def write_three(folder):
    with written_together(folder) as unfinished:
        for name in ("a", "b", "c"):
            (unfinished / name).write_text(name)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(None, id="new"),
        pytest.param([], id="empty", marks=pytest.mark.slow),
        pytest.param(["mine"], id="used"),
    ],
)
def test_a_killed_command_leaves_a_folder_that_the_same_command_completes(tmp_path, before):
    complete = 0
    for event in range(1, 20):
        folder = tmp_path / f"{before} {event}" / "out"  # which no other test has written to
        (folder.parent if before is None else folder).mkdir(parents=True)
        for name in before or ():
            (folder / name).touch()
        if not killed_at(event, partial(write_three, folder)):
            break
        if folder.is_dir() and {"a", "b", "c"} <= names(folder):
            complete += 1
            continue
        write_three(folder)
        assert names(folder) == {"a", "b", "c", *(before or [])}
        assert names(folder.parent) == {"out"}
    assert 4 < event < 19
    assert complete


def test_what_is_being_written_is_not_taken_for_abandoned(tmp_path):
    with replacing(tmp_path / "a.txt") as temporary, replacing_folder(tmp_path / "b") as folder:
        (tmp_path / ".mine-01234567.txt").touch()
        assert not killed_at(99, lambda: write_text(tmp_path / "c", ""))
        temporary.write_text("a")
        (folder / "inside").touch()
    assert names(tmp_path) == {"a.txt", "b", "c", ".mine-01234567.txt"}


def test_a_file_and_its_folders_are_on_the_disk_once_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda at: (synced.append(Path(f"/proc/self/fd/{at}").readlink()), real(at)))
    with replacing(tmp_path / "new/folder/a.txt") as temporary:
        temporary.write_text("a")
        synced.clear()
    removed = temporary.parent.with_name(f"{temporary.parent.name} (deleted)")
    assert synced == [temporary, removed, tmp_path / "new/folder"]
    synced.clear()
    with replacing(tmp_path / "other/folder/a.txt"):
        assert synced[:3] == [tmp_path / "other/folder", tmp_path / "other", tmp_path]  # before the names in them


def test_nothing_of_the_user_is_taken_for_abandoned(tmp_path):
    mine = {".env", ".env.local", ".env.progeo", ".a-0123abcd.progeo", ".a-0123abcdef"}
    for name in mine:
        (tmp_path / name).touch()
    (tmp_path / ".a-0123abcd").touch()
    (tmp_path / ".a-0123abcd.txt").touch()
    remove_abandoned(tmp_path)
    assert names(tmp_path) == mine - {".a-0123abcd.progeo"}


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120 + ".json", "a." + "x" * 253])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == {name}


def test_an_empty_folder_whose_name_stays_is_filled_instead_of_replaced(open_folder, as_nobody):
    folder = open_folder / "out"
    folder.mkdir()
    folder.chmod(0o777)
    with as_nobody():
        for number in range(1, 99):
            if not killed_at(number, partial(write_three, folder)):
                break
            if not {"a", "b", "c"} <= names(folder):
                write_three(folder)
                assert names(folder) == {"a", "b", "c"}
            for name in ("a", "b", "c"):
                (folder / name).unlink()
        assert 4 < number < 30
        assert names(folder) == {"a", "b", "c"}
    (open_folder / "link").symlink_to(open_folder / "empty")
    (open_folder / "empty").mkdir()
    with (
        pytest.raises(ValueError, match="link is the current folder, a mount point or a"),
        replacing_folder(open_folder / "link"),
    ):
        raise AssertionError("it is refused before the work")


def test_an_empty_folder_is_replaced_where_renaming_needs_a_free_name(tmp_path, monkeypatch):
    rename = Path.rename

    def rename_as_windows_does(path, target):
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_as_windows_does)
    for write in (replacing_folder, written_together):
        (folder := tmp_path / write.__name__).mkdir()
        with write(folder) as temporary:
            (temporary / "a").touch()
        assert [path.name for path in folder.iterdir()] == ["a"]
        with pytest.raises(ValueError, match="name another folder with `out`"), write(folder) as temporary:
            (temporary / "a").touch()


def test_an_empty_folder_that_is_replaced_keeps_its_permissions(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o2775)
    write_three(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o2775


def test_what_cannot_be_cleared_stays_free_for_whoever_can(tmp_path, monkeypatch):
    (tmp_path / ".a-0123abcd.progeo").touch()

    def refuse(path, **how):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr("progeo.atomic._remove", refuse)
        remove_abandoned(tmp_path)
    (tmp_path / ".a-0123abcd.progeo").touch()
    lock = try_lock(tmp_path / ".a-0123abcd.progeo")
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("before", [False, True], ids=["new", "with a file of the user"])
def test_a_folder_without_space_for_another_is_named_as_it_is(tmp_path, before, monkeypatch):
    folder = tmp_path / "out"
    if before:
        folder.mkdir()
        (folder / "mine").touch()
    real = Path.mkdir

    def full(path, *how, **options):
        if path.parent.name.startswith(".unfinished"):
            raise OSError(28, "No space left on device", str(path))
        real(path, *how, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError) as error, written_together(folder):
        raise AssertionError("it is refused before the work")
    assert str(error.value) == f"{folder} could not be written: [Errno 28] No space left on device: '{folder}'"


@pytest.mark.parametrize("moved", [["..", "mine"], {"..": 0, "mine": 0}, {"mine": None}, 5])
def test_a_folder_that_somebody_sent_has_no_file_removed(tmp_path, moved):
    got = tmp_path / "got"
    (got / ".a-01234567/a").mkdir(parents=True)
    (got / ".a-01234567/a/b").touch()
    (got / ".a-01234567.progeo").touch()
    (got / ".a-01234567/moves.json").write_text(json.dumps(moved))
    for path in (tmp_path / "mine", got / "mine"):
        path.touch()
    remove_abandoned(got)
    assert (tmp_path / "mine").exists()
    assert (got / "mine").exists()


def test_a_file_that_was_changed_after_a_kill_is_not_removed(tmp_path):
    (tmp_path / "mine").touch()
    for number in range(1, 99):
        assert killed_at(number, partial(write_three, tmp_path))
        if (tmp_path / "a").exists():
            break
    (tmp_path / "a").write_text("of the user")
    with pytest.raises(ValueError, match="already holds a"):
        write_three(tmp_path)
    assert (tmp_path / "a").read_text() == "of the user"


def test_a_folder_that_cannot_be_listed_is_written_to(open_folder):
    (open_folder / "box").mkdir()
    (open_folder / "box").chmod(0o333)
    writer = os.fork()
    if not writer:
        if not os.geteuid():
            os.setuid(65534)
        try:
            write_text(open_folder / "box/a.txt", "a")
            os._exit(7)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == 7
    assert names(open_folder / "box") == {"a.txt"}


def test_the_current_folder_is_filled_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_three(Path().resolve())
    assert names(Path()) == {"a", "b", "c"}
