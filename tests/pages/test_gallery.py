import base64
import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from progeo.pages.gallery import SIDE_PX, Gallery, Item, Measure, Photos, Row, Strip


def opened(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def test_a_photo_is_stored_once_and_its_picture_is_small(tmp_path):
    Image.new("RGB", (1200, 800), (200, 0, 0)).save(tmp_path / "a.png")
    photos = Photos()
    first = photos.add("a.png", tmp_path / "a.png", embedded=False)
    assert photos.add("a.png", tmp_path / "a.png") == first
    ((name, picture),) = photos.data(show_paths=False)
    assert name == "a.png"
    with opened(picture) as image:
        assert image.format == "WEBP"
        assert image.size == (SIDE_PX, 213)


def test_photos_of_one_name_in_two_folders_are_two(tmp_path):
    photos = Photos()
    assert photos.add("a.png", tmp_path / "x" / "a.png") != photos.add("a.png", tmp_path / "y" / "a.png")
    assert len(photos) == photos.num_embedded == 2


def test_a_photo_that_cannot_be_opened_differs_from_one_without_a_picture(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    photos = Photos()
    photos.add("broken.jpg", tmp_path / "broken.jpg")
    photos.add("far.jpg", tmp_path / "broken.jpg", embedded=False)
    photos.add("no file", None)
    assert photos.data(show_paths=False) == [["broken.jpg", ""], ["far.jpg", None], ["no file", False]]


def test_paths_are_told_only_if_they_are_wanted(tmp_path):
    photos = Photos()
    photos.add("far.jpg", tmp_path / "far.jpg", embedded=False)
    assert photos.data(show_paths=True) == [["far.jpg", None, str(tmp_path / "far.jpg")]]


def test_photos_are_shown_upright_and_those_of_16_bits_in_all_their_grays(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "lying.jpg", exif=exif)
    Image.fromarray(np.full((200, 300), 128 * 256, np.uint16)).save(tmp_path / "deep.png")
    photos = Photos()
    photos.add("lying.jpg", tmp_path / "lying.jpg")
    photos.add("deep.png", tmp_path / "deep.png")
    (_, lying), (_, deep) = photos.data(show_paths=False)
    with opened(lying) as image:
        assert image.size == (200, 300)
    with opened(deep) as image:
        assert image.size == (300, 200)
        assert image.getpixel((40, 40)) == pytest.approx((128, 128, 128), abs=2)


def test_rows_become_compact_lists():
    photos = Photos()
    one, two = photos.add("one", None), photos.add("two", None)
    items = [Item(two, "wrong", (1, 12.345678, None)), Item(two, values=(2, np.nan, "x"))]
    facets = {"verdict": "hit", "light": "night"}
    rows = [Row(7, one, [Strip("predictions", items)], "correct", facets, "a note"), Row(8, None)]
    gallery = Gallery(
        photos,
        rows,
        [Measure("rank", "rank"), Measure("m", "meters"), Measure("why", "text")],
        {"light": ["day", "night"], "verdict": ["miss", "hit"]},
        {"worst first": "given"},
    )
    data = gallery.data(show_paths=False)
    assert data["rows"] == [
        [7, 0, 1, [1, 1], [[0, [[1, 0, 1.0, 12.3457, None], [1, 2, 2.0, None, "x"]]]], "a note"],
        [8, None, 2, [-1, -1], [], ""],
    ]
    assert data["titles"] == ["predictions"]
    assert data["measures"] == [["rank", "rank"], ["m", "meters"], ["why", "text"]]
    assert data["filters"] == {"light": ["day", "night"], "verdict": ["miss", "hit"]}
    assert data["orders"] == [("worst first", "given")]


def test_lines_between_photos_are_thousandths_and_evenly_chosen_if_there_are_many():
    photos = Photos()
    one, two = photos.add("one", None), photos.add("two", None)
    many = [(line / 250, 0, 0.12345, 1) for line in range(250)]
    items = [Item(two), Item(two, lines=[(0.1, 0.2, 0.3, 0.4)]), Item(two, lines=many)]
    data = Gallery(photos, [Row(0, one, [Strip("a", items), Strip("b", items[:1])])]).data(show_paths=False)
    ((_, _, drawn), (_, _)) = data["rows"][0][4]
    assert drawn["1"] == [100, 200, 300, 400]
    assert (len(drawn["2"]) / 4, drawn["2"][:8]) == (84, [0, 0, 123, 1000, 12, 0, 123, 1000])  # every third
    assert list(drawn) == ["1", "2"]


def test_a_row_may_have_several_values_of_a_filter():
    rows = [Row(0, None, facets={"right by": ["c", "a"]}), Row(1, None, facets={"right by": []})]
    data = Gallery(Photos(), rows, filters={"right by": ["a", "b", "c"]}).data(show_paths=False)
    assert [row[3] for row in data["rows"]] == [[[2, 0]], [[]]]


def test_all_texts_of_rows_are_safe_to_display(tmp_path):
    evil, safe = "a\u202eb", r"a\u202eb"
    photos = Photos()
    number = photos.add(evil, tmp_path / evil, embedded=False)
    rows = [Row(0, number, [Strip(evil, [Item(number, values=[evil])])], facets={"light": evil}, note=evil)]
    data = Gallery(photos, rows, [Measure("why", "text")], {"light": [evil]}).data(show_paths=True)
    assert data["rows"] == [[0, 0, 2, [0], [[0, [[0, 2, safe]]]], safe]]
    assert (data["titles"], data["filters"]) == ([safe], {"light": [safe]})
    assert data["photos"] == [[safe, None, str(tmp_path / safe)]]
