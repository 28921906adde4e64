"""Copies of photos with positions: which are written, where, and never over a file."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from progeo.datasets.readers.photos import read_photos
from progeo.localization.copies import plan_copies, write_copies
from progeo.localization.localizations import Localization, Match


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def localized(path, *, known=True, latitude=-52.25):
    match = Match("m.jpg", latitude, 0.125, 3e5, 5.8e6, 0.5, row=0)
    return Localization(str(path), 0.8, 10.0, known, (match,))


@pytest.fixture
def photos(tmp_path):
    return [photo(tmp_path / "trip" / name) for name in ("a.jpg", "day 2/b.png", "day 2/c.webp", "d.bmp", "e.jpg")]


def test_only_known_positions_are_written_and_read_back(photos, tmp_path, caplog):
    originals = [path.read_bytes() for path in photos]
    copies = plan_copies(photos, tmp_path / "copies")
    results = [localized(path) for path in photos]
    results[2] = localized(photos[2], known=False)
    results[4] = localized(photos[4], latitude=None)
    results.append(replace(localized(photos[4]), confidence=None, known=None, radius_m=None))
    assert write_copies([*results, results[0]], copies) == 2
    assert sorted(path for path in (tmp_path / "copies").rglob("*") if path.is_file()) == [
        tmp_path / "copies/a.jpg",
        tmp_path / "copies/day 2/b.png",
    ]
    assert [path.read_bytes() for path in photos] == originals
    assert "d.bmp is written: it is BMP, and only JPEG" in caplog.text
    catalogue, skipped = read_photos(tmp_path / "copies")
    assert not skipped
    np.testing.assert_allclose(catalogue.table["latitude"], -52.25)
    np.testing.assert_allclose(catalogue.table["longitude"], 0.125)


@pytest.mark.parametrize("folder", ["copies", "trip"])
def test_a_file_is_never_replaced(photos, tmp_path, folder):
    photo(tmp_path / "copies/day 2/c.webp")
    with pytest.raises(FileExistsError, match="exists already: name another folder with `write_exif`"):
        plan_copies(photos, tmp_path / folder)


def test_a_file_that_appears_meanwhile_is_not_replaced_and_ends_no_other_copy(photos, tmp_path, caplog):
    copies = plan_copies(photos, tmp_path / "copies")
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies/a.jpg").write_text("of somebody else")
    assert write_copies([localized(photo) for photo in (photos[0], photos[4])], copies) == 1
    assert (tmp_path / "copies/a.jpg").read_text() == "of somebody else"
    assert (tmp_path / "copies/e.jpg").is_file()
    assert f"no copy of {photos[0]} is written: {tmp_path}/copies/a.jpg exists already" in caplog.text


def test_a_file_is_no_folder_of_copies(photos, tmp_path):
    (tmp_path / "copies").touch()
    with pytest.raises(OSError, match=r"copies/a.jpg could not be written: .*copies is a file"):
        plan_copies(photos, tmp_path / "copies")


def test_a_single_photo_keeps_its_name(photos, tmp_path):
    assert plan_copies(photos[1:2], tmp_path) == {str(photos[1]): tmp_path / "b.png"}
