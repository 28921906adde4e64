"""Image files of a folder that are not read: counted and named."""

import logging

import pytest

from progeo.image_files import EXTENSIONS
from progeo.places.paths import find_paths

CONVERT = "convert them to .jpg or .png"


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder):
    return [path for batch in find_paths(folder).batches for path in batch.to_pylist()]


def test_every_format_that_can_be_read_counts_as_an_image(tmp_path):
    names = sorted(f"photo{extension}" for extension in (*EXTENSIONS, ".WEBP", ".Jpg"))
    assert found(touched(tmp_path, *names)) == names


def test_files_that_are_not_read_are_counted_by_extension_at_any_depth(tmp_path, caplog):
    names = ["a.jpg", "b.DNG", "deep/c.tif", "deep/d.TIF", "deep/er/e.tif", "f.jfif", "notes.txt", "deep/photo", "jpg"]
    (tmp_path / "folder.tif").mkdir()
    with caplog.at_level(logging.WARNING, "progeo"):
        assert found(touched(tmp_path, *names)) == ["a.jpg"]
    assert caplog.messages == [
        f"{tmp_path} also holds files that are not read: 3 .tif ({CONVERT}), 1 .dng ({CONVERT}), "
        "1 .jfif (they are JPEG: rename them to .jpg)"
    ]
    caplog.clear()
    found(touched(tmp_path / "plain", "a.jpg", "notes.txt"))
    assert not caplog.messages


def test_where_no_image_is_read_the_error_says_what_is_there_instead(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image \(\.jpg, .*below it\. Not read: 1,200 \.gif \(con"):
        find_paths(touched(tmp_path, *(f"{number}.gif" for number in range(1200))))


@pytest.mark.parametrize("extension", [".heic", ".heif", ".avif", ".jxl"])
def test_phone_photos_are_read_or_the_extra_is_named(tmp_path, extension):
    touched(tmp_path, f"IMG_0001{extension.upper()}")
    if extension in EXTENSIONS:
        assert found(tmp_path) == [f"IMG_0001{extension.upper()}"]
    else:
        with pytest.raises(FileNotFoundError, match=rf"Not read: 1 \{extension} \(pip install 'progeo\[formats\]'\)"):
            find_paths(tmp_path)
