import json

import pytest

from progeo.data.fingerprints import changed_data, data_fingerprints, file_fingerprint
from progeo.places.catalogue import read_catalogue

NAMES = [f"@{549000 + number}@4180000@10@S@@@@@90@@@@@@.jpg" for number in range(3)]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(bytes([number]))
    return tmp_path


def test_images_that_stayed_the_same_are_not_told(photos):
    known = {str(photos): data_fingerprints(read_catalogue(photos))}
    assert json.loads(json.dumps(known))[str(photos)]["images"] == 3
    assert changed_data(known) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / NAMES[1]).write_bytes(b"x"), "the contents of the images in"),
        (
            lambda folder: (folder / NAMES[1]).rename(folder / "@1@2@10@S@@@@@90@@@@@@.jpg"),
            "the names of the images in",
        ),
        (lambda folder: (folder / NAMES[1]).unlink(), "the number of images in"),
    ],
)
def test_it_is_told_what_changed(change, words, photos):
    known = {str(photos): data_fingerprints(read_catalogue(photos))}
    change(photos)
    assert changed_data(known).startswith("These are not as they were: ")
    assert f"{words} {photos}" in changed_data(known)


def test_positions_are_compared_where_they_are_known(photos):
    ignored = data_fingerprints(read_catalogue(photos, positions="ignored"))
    assert "image_places" not in ignored
    assert changed_data({str(photos): ignored}) == ""
    moved = data_fingerprints(read_catalogue(photos)) | {"image_places": "other"}
    assert changed_data({str(photos): moved}) == (
        f"These are not as they were: the positions or headings of the images in {photos}."
    )


def test_a_file_is_told_if_its_content_changed(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    known = {str(weights): file_fingerprint(weights)}
    assert changed_data(known) == ""
    weights.write_bytes(b"y")
    assert changed_data(known) == f"These are not as they were: the file {weights}."
    weights.unlink()
    assert str(weights) in changed_data(known)


def test_what_cannot_be_known_now_is_not_compared(tmp_path):
    (tmp_path / "nowhere.jpg").write_bytes(b"x")
    known = data_fingerprints(read_catalogue(tmp_path, positions="optional"))
    assert changed_data({str(tmp_path): known | {"image_places": "of another version"}}) == ""
