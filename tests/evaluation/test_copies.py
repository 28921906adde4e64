import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from progeo.evaluation.copies import find_copies
from progeo.places.catalogue import Catalogue
from progeo.remote_files import RemotePath


def catalogue(folder, *names):
    return Catalogue(folder, pa.table({"path": list(names)}))


@pytest.fixture
def photo(tmp_path):
    for folder in ("photos", "images", "elsewhere"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "photos/photo.jpg"
    path.write_bytes(b"some pixels")
    return path


def gone(path, made):
    made.write_bytes(b"unlike")
    made.unlink()


def of_the_same_time(path, made):
    made.write_bytes(b"other pixel")
    for each in (path, made):
        os.utime(each, ns=(10**18, 10**18))


@pytest.mark.parametrize(
    ("name", "make", "itself"),
    [
        ("copy.jpg", shutil.copy, True),
        ("photo.jpg", shutil.copy, True),
        ("link.jpg", lambda path, made: made.symlink_to(path), True),
        ("hard_link.jpg", lambda path, made: os.link(path, made), True),
        ("as_large.jpg", lambda path, made: made.write_bytes(b"other pixel"), False),
        ("photo.jpg", lambda path, made: made.write_bytes(b"other pixel"), False),
        ("photo.jpg", of_the_same_time, False),
        ("larger.jpg", lambda path, made: made.write_bytes(b"some pixels."), False),
        ("photo.jpg", gone, True),  # as after a move
        ("other.jpg", gone, False),
    ],
)
def test_a_photo_finds_itself_where_the_file_or_its_content_is_the_same(name, make, itself, photo, tmp_path):
    make(photo, tmp_path / "images" / name)
    database = catalogue(tmp_path / "images", "unlike.jpg", name)
    (tmp_path / "images/unlike.jpg").write_bytes(b"unlike")
    found = find_copies(catalogue(photo.parent, photo.name), database, np.array([[0, 1, -1]]))
    assert found.tolist() == [itself]


def test_only_what_was_found_counts(photo, tmp_path):
    shutil.copy(photo, tmp_path / "images/photo.jpg")
    (tmp_path / "images/last.jpg").write_bytes(b"last")
    database = catalogue(tmp_path / "images", "last.jpg", "photo.jpg")
    photos = catalogue(photo.parent, photo.name, photo.name)
    # Row -1 is no row: not the last one, which is the photo itself.
    assert find_copies(photos, database, np.array([[0, -1], [0, 1]])).tolist() == [False, True]


def test_photos_that_are_gone_are_not_taken_for_others_of_their_name(tmp_path):
    photos = catalogue(tmp_path / "summer", "0001.jpg")
    assert find_copies(photos, catalogue(tmp_path / "winter", "0001.jpg"), np.array([[0]])).tolist() == [False]


@pytest.mark.parametrize(("content", "itself"), [(b"some pixels", True), (b"other pixel", False), (b"some", False)])
def test_images_behind_a_url_are_compared_by_content(content, itself, photo):
    made = photo.parent.parent / "images/made.jpg"
    made.write_bytes(content)
    images = catalogue(RemotePath(f"file://{made.parent}"), "made.jpg")
    found = find_copies(catalogue(photo.parent, "photo.jpg"), images, np.array([[0]]))
    assert found.tolist() == [itself]
