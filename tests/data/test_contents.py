import os

import numpy as np
import pytest
from running import build_catalogue

from progeo import remote_files
from progeo.data import contents
from progeo.data.contents import changed_files, contents_digest, contents_fingerprint, rows_looked_at, see_files

NAMES = [f"@{row}@0@.jpg" for row in range(12)]
TIME_NS = 10**18


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    """Of twelve images six are looked at, 0 2 4 6 8 11, and of these three are read: 0 4 11."""
    monkeypatch.setattr(contents, "MAX_CHECKED", 6)
    monkeypatch.setattr(contents, "MAX_READ", 3)


def write(folder, row, content=None, *, time_ns=TIME_NS):
    """A file of eight bytes, as it was at first or with other content."""
    folder.mkdir(exist_ok=True)
    (folder / NAMES[row]).write_bytes(f"image {row:02}".encode() if content is None else content)
    os.utime(folder / NAMES[row], ns=(time_ns, time_ns))


@pytest.fixture
def catalogue(tmp_path):
    for row in range(12):
        write(tmp_path / "here", row)
    return build_catalogue(tmp_path / "here", NAMES)


def test_the_images_that_are_checked_are_evenly_spaced():
    assert rows_looked_at(12).tolist() == [0, 2, 4, 6, 8, 11]
    assert rows_looked_at(3).tolist() == [0, 1, 2]


def test_of_each_image_the_size_and_time_are_seen_and_of_some_the_content(catalogue):
    (catalogue.folder / NAMES[2]).unlink()
    seen = see_files(catalogue)
    assert seen["size"].tolist() == [8, -1, 8, 8, 8, 8]
    assert seen["changed_ns"].tolist() == [TIME_NS, -1, TIME_NS, TIME_NS, TIME_NS, TIME_NS]
    assert [digest != b"" for digest in seen["digest"].tolist()] == [True, False, True, False, False, True]
    assert len(set(seen["digest"].tolist())) == 4


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, []),
        ({0: (b"other 00", TIME_NS + 1)}, [0]),  # the content was read
        ({0: (b"other 00", TIME_NS), 11: (b"other 11", TIME_NS)}, [0, 11]),  # with size and time of before
        ({4: (None, TIME_NS + 1), 11: (None, 0)}, []),  # touched, with the same content
        ({2: (None, TIME_NS + 1)}, [2]),  # touched: nobody knows what was in it
        ({6: (b"longer than it was", TIME_NS)}, [6]),
        ({1: (b"not looked at", 0)}, []),
        ({row: (None, TIME_NS + row + 1) for row in range(12)}, []),  # copied
        ({row: (b"other %02d" % row if row in (2, 4) else None, TIME_NS + 1) for row in range(12)}, [4]),
        ({row: (b"longer" if row == 8 else None, 0) for row in range(12)}, [8]),
    ],
)
def test_an_image_is_another_where_its_size_content_or_time_says_so(catalogue, changes, others):
    before = see_files(catalogue)
    for row, (content, time_ns) in changes.items():
        write(catalogue.folder, row, content, time_ns=time_ns)
    assert changed_files(before, see_files(catalogue), 12).tolist() == others


def test_a_missing_image_does_not_hide_that_the_others_were_copied(catalogue):
    (catalogue.folder / NAMES[2]).unlink()
    before = see_files(catalogue)
    for row in set(range(12)) - {2}:
        write(catalogue.folder, row, time_ns=TIME_NS + 1)
    assert changed_files(before, see_files(catalogue), 12).tolist() == []


def test_an_image_that_is_gone_is_another(catalogue):
    before = see_files(catalogue)
    for row in (0, 2):
        (catalogue.folder / NAMES[row]).unlink()
    assert changed_files(before, see_files(catalogue), 12).tolist() == [0, 2]


def test_of_images_that_were_moved_one_with_another_time_is_another(catalogue, tmp_path):
    before = see_files(catalogue)
    catalogue.folder.rename(tmp_path / "there")
    there = build_catalogue(tmp_path / "there", NAMES)
    assert changed_files(before, see_files(there), 12).tolist() == []
    write(there.folder, 6, time_ns=TIME_NS + 1)
    assert changed_files(before, see_files(there), 12).tolist() == [6]


@pytest.mark.parametrize("time_ns", [TIME_NS, TIME_NS + 1])
def test_of_images_elsewhere_the_contents_count_whatever_their_times(catalogue, tmp_path, time_ns):
    before = see_files(catalogue)
    for row in range(12):
        write(tmp_path / "there", row, time_ns=time_ns)
    there = build_catalogue(tmp_path / "there", NAMES)
    assert changed_files(before, see_files(there), 12).tolist() == []
    assert contents_fingerprint(there) == contents_fingerprint(catalogue)
    write(tmp_path / "there", 4, b"other 04", time_ns=time_ns)
    assert changed_files(before, see_files(there), 12).tolist() == [4]
    assert contents_fingerprint(there) != contents_fingerprint(catalogue)


def test_sets_of_one_image_are_told_apart(tmp_path):
    for folder, content in (("a", b"one"), ("b", b"two")):
        write(tmp_path / folder, 0, content)
    one, other = (build_catalogue(tmp_path / folder, NAMES[:1]) for folder in ("a", "b"))
    assert changed_files(see_files(one), see_files(other), 1).tolist() == [0]
    assert np.array_equal(see_files(one)["size"], see_files(other)["size"])


def test_the_digest_of_contents_is_of_sizes_and_of_what_was_read(catalogue, tmp_path):
    digest = contents_digest(see_files(catalogue))
    for row in range(12):
        write(tmp_path / "there", row, b"other 02" if row == 2 else None, time_ns=TIME_NS + row)
    there = build_catalogue(tmp_path / "there", NAMES)
    assert contents_digest(see_files(there)) == digest
    write(tmp_path / "there", 4, b"other 04")  # which is read
    assert contents_digest(see_files(there)) != digest
    write(tmp_path / "there", 4)
    write(tmp_path / "there", 2, b"longer than it was")
    assert contents_digest(see_files(there)) != digest


def test_images_behind_urls_of_which_none_can_be_reached_have_not_changed(catalogue, monkeypatch):
    monkeypatch.setattr(remote_files, "_WAITS_S", (0.0, 0.0))
    gone = [f"http://127.0.0.1:1/{name}" for name in NAMES]
    with pytest.raises(OSError, match=r"^http://127.0.0.1:1/@11@0@.jpg cannot be reached: .*Connect call failed"):
        see_files(build_catalogue(catalogue.folder, gone))
    assert see_files(build_catalogue(catalogue.folder, [*gone[:11], NAMES[11]]))["size"].tolist() == [-1] * 5 + [8]
