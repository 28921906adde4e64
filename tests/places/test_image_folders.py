"""Which images a folder holds: as Python's glob finds them, but without loops and without what systems make."""

import glob
import os
import re
import time

import pytest

from progeo.datasets.readers.photos import read_photos
from progeo.image_files import EXTENSIONS
from progeo.places.catalogue import read_catalogue
from progeo.places.paths import find_paths
from progeo.places.scanning import index_catalogue

A, B, C = (f"@{east}@4000000@10@S@.jpg" for east in (1, 2, 3))


def lay_out(folder, layout):
    """Make empty files, and links where a path has a target."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, target in layout.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            (folder / path).touch()
        else:
            (folder / path).symlink_to(target)


def found(folder):
    return [path for batch in find_paths(folder).batches for path in batch.to_pylist()]


def found_by_glob(folder):
    pattern = os.path.join(glob.escape(str(folder)), "**/*")  # noqa: PTH118  the reference itself
    names = (os.path.relpath(path, folder) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))  # noqa: PTH113, PTH207
    return sorted(name for name in names if name.endswith(EXTENSIONS))


LAYOUTS = {
    "at any depth": {A: None, f"a/{B}": None, f"a/b/c/{C}": None},
    "other files": {A: None, "notes.txt": None, "a/b.jpg.txt": None, "jpg": None},
    "hidden files of macOS": {A: None, f"._{A}": None, f"a/._{B}": None, f"a/{B}": None, ".jpg": None},
    "hidden folders": {
        A: None,
        f".ipynb_checkpoints/{A}": None,
        f"a/.Trash-1000/files/{B}": None,
        f"a/.thumbnails/{B}": None,
        f"a/{B}": None,
    },
    "a folder called like an image": {f"all.jpg/{A}": None, B: None},
    "a linked folder": {A: None, "more": "../disk", f"../disk/{B}": None, f"../disk/deep/{C}": None},
    "a linked folder in a linked one": {"x": "../disk", "../disk/y": "../other", f"../other/{A}": None},
    "linked under two names": {f"a/{A}": None, "b": "a", "c/d": "../a"},
    "a linked folder called like an image": {"some.jpg": "../disk", f"../disk/{A}": None},
    "linked images": {A: "../disk/1.jpg", "../disk/1.jpg": None, "same.jpg": A},
    "hidden images with other names": {A: ".store/1", ".store/1": None, "b": ".store", f".store/{B}": None},
    "hidden links": {A: None, ".more": "../disk", f".{B}": A, f"../disk/{C}": None},
    "links to nothing": {A: None, B: "../gone.jpg", "more": "../gone", "self.jpg": "self.jpg", ".#lock": "me@there"},
    "a link into a file": {A: None, "more": f"{A}/more"},
    "spaces, quotes and other letters": {f"a b/'é' \"ü\"/{A}": None, "[1]/*?.jpg": None, "日本/\t.jpg": None},
    "links to what is no image": {A: None, "notes": "notes.txt", "notes.txt": None, "null.jpg": "/dev/null"},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("above", ["data/set", ".hidden/.set", "@eaDir/__MACOSX"])
def test_a_folder_holds_what_glob_finds_in_it_wherever_it_lies(tmp_path, name, above):
    lay_out(tmp_path / above, LAYOUTS[name])
    assert found(tmp_path / above) == found_by_glob(tmp_path / above) != []


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({A: None, "again": "."}, [A]),
        ({f"a/{A}": None, "a/again": "."}, [f"a/{A}"]),
        ({f"a/b/{A}": None, "a/b/top": "../.."}, [f"a/b/{A}"]),
        ({f"a/{A}": None, "../queries/1.jpg": None, "a/above": "../.."}, [f"a/{A}"]),  # the set is not in itself
        ({f"a/{A}": None, f"b/{B}": None, "a/b": "../b", "b/a": "../a"}, [f"a/{A}", f"a/b/{B}", f"b/{B}", f"b/a/{A}"]),
        ({"x": "../d/a/b", f"../d/a/b/{A}": None, "../d/a/b/up": "..", f"../d/a/{B}": None}, [f"x/{A}", f"x/up/{B}"]),
    ],
)
def test_a_loop_of_links_ends_and_is_said(tmp_path, caplog, layout, expected):
    lay_out(tmp_path / "set", layout)
    assert found(tmp_path / "set") == sorted(expected)
    assert "links lead back to a folder that they lie in and are skipped, such as" in caplog.text


def test_a_linked_set_holds_what_it_holds(tmp_path):
    lay_out(tmp_path / "disk", {A: None, f"a/{B}": None, "a/top": ".."})
    (tmp_path / "set").symlink_to("disk")
    assert found(tmp_path / "set") == [A, f"a/{B}"]


@pytest.mark.parametrize(
    "name", ["__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
def test_what_systems_make_for_themselves_is_no_image(tmp_path, name):
    lay_out(tmp_path, {A: None, f"a/{name}/{B}": None, f"a/{name}/{A}/thumb.jpg": None, f"my {name}/{C}": None})
    assert found(tmp_path) == [A, f"my {name}/{C}"]


@pytest.mark.parametrize("hidden", [f"a/._{A}", f".Trash-0/{A}", f"__MACOSX/{A}"])
def test_where_all_images_are_hidden_the_error_says_so(tmp_path, hidden):
    lay_out(tmp_path, {hidden: None, "notes.txt": None})
    first = hidden if "._" in hidden else hidden.split("/")[0]
    with pytest.raises(
        FileNotFoundError, match=rf"There is no image .*, but for hidden .*, such as {re.escape(first)}\.$"
    ):
        find_paths(tmp_path)


def test_links_to_nothing_are_said_once_with_a_count(tmp_path, caplog):
    lay_out(tmp_path, {A: None, "b.jpg": "gone.jpg", "a/more": "/gone", "a/notes": "/gone/notes.txt"})
    find_paths(tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}: 3 links lead nowhere and are skipped, such as a/more"


def test_hidden_photos_are_no_photos_either(tmp_path):
    lay_out(tmp_path, {A: None, f"._{A}": None, f"@eaDir/{A}": None})
    with pytest.raises(ValueError, match="None of the 1 photos in"):
        read_photos(tmp_path)


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_may_not_be_looked_into_is_named(open_folder, as_nobody, linked):
    lay_out(open_folder, {f"set/{A}": None, f"closed/{B}": None, f"set/sub/{C}": None})
    closed = open_folder / ("closed" if linked else "set/sub")
    closed.chmod(0)
    if linked:
        (open_folder / "set/more").symlink_to("../closed")
    name = re.escape(str(open_folder / ("set/more" if linked else "set/sub")))
    with as_nobody(), pytest.raises(OSError, match=rf"^{name} cannot be looked into \(Permission denied\): make it"):
        find_paths(open_folder / "set")


def test_a_name_that_is_not_utf_8_is_spelled_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"@1@2@caf\xe9@.jpg")).touch()
    name = re.escape(f"{tmp_path}/a/@1@2@caf\\xe9@.jpg")
    with pytest.raises(ValueError, match=rf"^The name of {name} is not UTF-8: rename it\.$"):
        read_catalogue(tmp_path)


def test_other_files_may_be_called_as_they_like(tmp_path):
    lay_out(tmp_path, {A: None, os.fsdecode(b"caf\xe9/menu.txt"): None})
    index_catalogue(tmp_path)
    assert read_catalogue(tmp_path).table["path"].to_pylist() == [A]


@pytest.mark.parametrize("change", ["more", "mended", "another"])
def test_an_index_is_refused_when_something_behind_a_link_changed(tmp_path, change):
    lay_out(tmp_path / "set", {A: None, "more": "../disk", f"../disk/a/{B}": None, "gone": "../unmounted"})
    index_catalogue(tmp_path / "set")
    assert len(read_catalogue(tmp_path / "set")) == 2
    time.sleep(0.01)
    if change == "more":
        lay_out(tmp_path / "disk", {f"a/{C}": None})
    elif change == "mended":
        lay_out(tmp_path / "unmounted", {C: None})
    else:
        lay_out(tmp_path / "other", {f"a/{B}": None, C: None})
        (tmp_path / "set/more").unlink()
        (tmp_path / "set/more").symlink_to("../other")
    with pytest.raises(ValueError, match=r"changed since .* was made: run `progeo dataset scan"):
        read_catalogue(tmp_path / "set")
    index_catalogue(tmp_path / "set")
    assert len(read_catalogue(tmp_path / "set")) == 3
