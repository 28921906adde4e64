import json
import os

import pytest
from running import killed_at

from progeo.file_sets import read_set, write_set
from progeo.files import write_json


def write(folder, version, names=("a.bin", "b.bin"), **how):
    files = {name: lambda path, name=name: path.write_text(f"{name} {version}") for name in names}
    write_set(folder / "set.json", {"version": version}, files, **how)


def read(folder, names=("a.bin", "b.bin")):
    def versions(files):
        found = {files.path(name).read_text()[:7] for name in names}
        return files.description["version"], {int(text[6]) for text in found}

    return read_set(folder / "set.json", versions)


def test_a_set_comes_back_and_leaves_nothing_else(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for version in (1, 2):
        write(tmp_path, version)
        assert read(tmp_path) == (version, {version})
    write(tmp_path, 3, names=["a.bin"])
    assert {path.name for path in tmp_path.iterdir()} == {"set.json", "a.bin", "mine.txt"}
    write(tmp_path, 4, names=["b.bin"], without=["mine.txt"])
    assert {path.name for path in tmp_path.iterdir()} == {"set.json", "b.bin"}


def test_a_reader_gets_one_version_whatever_a_writer_does_meanwhile(tmp_path):
    write(tmp_path, 1)
    writer = os.fork()
    if not writer:
        for version in range(2, 10):
            write(tmp_path, version)
        os._exit(0)
    seen = []
    while not os.waitpid(writer, os.WNOHANG)[0]:
        version, of_files = read(tmp_path)
        assert of_files == {version}
        seen.append(version)
    assert len(set(seen)) > 2


@pytest.mark.parametrize("event", range(1, 11))
def test_a_killed_writer_leaves_one_version_and_the_next_writer_no_trace(tmp_path, event):
    write(tmp_path, 2)
    assert killed_at(event, lambda: write(tmp_path, 1))
    version, of_files = read(tmp_path)
    assert of_files == {version}
    write(tmp_path, 3)
    assert read(tmp_path) == (3, {3})
    assert {path.name for path in tmp_path.iterdir()} == {"set.json", "a.bin", "b.bin"}


def test_a_file_that_is_not_the_one_that_was_written_is_refused(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "a.bin").write_text("a.bin 2")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/a\.bin is not the file that was written with {tmp_path}/set\.json"
    ):
        read(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match=rf"There is no {tmp_path}/a\.bin"):
        read(tmp_path)


def test_a_description_without_digests_is_read_as_it_is(tmp_path):
    write_json(tmp_path / "set.json", {"version": 1})
    (tmp_path / "a.bin").write_text("a.bin 5")
    assert read(tmp_path, ["a.bin"]) == (1, {5})


@pytest.mark.parametrize("name", ["../secret", "..", ".", "*", "a\0b", "x" * 300, "mine.txt", "[a-m]ine.txt"])
@pytest.mark.parametrize("digest", ["0" * 64, "/../../secret"])
def test_a_description_of_others_has_no_other_files_removed(name, digest, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    others = [
        tmp_path / "secret",
        folder / "mine.txt",
        folder / ".hidden.0123456789abcdef",
        folder / ".mine.txt.notes_of_mine_16",
    ]
    for path in others:
        path.write_text("mine")
    (folder / "set.json").write_text(json.dumps({"version": 1, "files": {name: digest}}))
    write(folder, 2)
    assert [path.read_text() for path in others] == ["mine"] * 4
    assert read(folder) == (2, {2})


def test_a_file_that_is_copied_unchanged_is_not_written_again(tmp_path):
    (tmp_path / "source").write_text("a.bin 1")
    files = {"a.bin": tmp_path / "source"}
    write_set(tmp_path / "set.json", {"version": 1}, files)
    first = (tmp_path / "a.bin").stat()
    write_set(tmp_path / "set.json", {"version": 2}, files)
    assert os.path.samestat((tmp_path / "a.bin").stat(), first)
    assert read(tmp_path, ["a.bin"]) == (2, {1})


def test_a_description_that_somebody_changed_leads_to_no_file_of_others(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    names = {"thesis.tex": "0" * 64, "..": "1" * 64, "a.bin": "../secret", "set.json": ""}
    (tmp_path / "set.json").write_text(json.dumps({"files": names}))
    write(tmp_path, 2)
    assert read(tmp_path) == (2, {2})
    assert {path.name for path in tmp_path.iterdir()} == {"set.json", "a.bin", "b.bin", "thesis.tex"}


@pytest.mark.parametrize("event", range(1, 13))
def test_a_killed_writer_leaves_one_version_where_there_are_no_hard_links(tmp_path, event, monkeypatch):
    def refuse(*paths):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path, 2)
    killed_at(event, lambda: write(tmp_path, 1))
    version, of_files = read(tmp_path)
    assert of_files == {version}


def test_a_copy_that_was_not_finished_is_not_kept(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def refuse(*paths):
        raise PermissionError

    def stop_copying(source, target):
        target.write_text("a")
        os._exit(0)

    def stop(*given):
        os._exit(0)

    for name, value in (("shutil.copyfile", stop_copying), ("progeo.file_sets.write_json", stop)):
        if not (writer := os.fork()):
            monkeypatch.setattr(os, "link", refuse)
            monkeypatch.setattr(name, value)
            write(tmp_path, 2)
        os.waitpid(writer, 0)
        assert read(tmp_path) == (1, {1})
