"""Cached features of images that are moved, copied and changed."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from progeo.engine.accelerator import start_accelerator
from progeo.features.cache import Cache
from progeo.features.extract import extract_features
from progeo.features.extractor import FeatureExtractor
from progeo.places.catalogue import read_catalogue


@pytest.fixture
def colors(tmp_path):
    """The colors of the images of a folder, rounded, as a cache keeps them; and whether any had to be extracted."""
    extracted = []

    def extract(images):
        extracted.append(len(images))
        return (images.float().mean(dim=(2, 3)) / 10).round()

    def found(folder, *, cache="cache", is_extracted, batch_size=4, allowed=0.0, depends_on=None):
        extractor = FeatureExtractor(
            extract,
            what="colors",
            width=3,
            image_size=(8, 8),
            preprocessing="hard_resize",
            resize="bilinear",
            depends_on=lambda: depends_on or {"color": "rgb"},
        )
        del extracted[:]
        result = extract_features(
            extractor,
            read_catalogue(folder),
            start_accelerator("no"),
            cache=Cache(tmp_path / cache, "float32", "cache"),
            batch_size=batch_size,
            num_workers=0,
            max_unreadable_fraction=allowed,
        )
        assert bool(extracted) == is_extracted
        return np.concatenate(list(result.rows.parts()))[:, 0].astype(int).tolist()

    return found


def paint(folder, colors, *, size=(8, 8)):
    """Images of these colors, in tens, all with the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, color in enumerate(colors):
        Image.new("RGB", size, (10 * color,) * 3).save(folder / f"@{row}@0@.jpg")
    return folder


def test_features_of_moved_images_are_found_again(colors, tmp_path):
    here = paint(tmp_path / "here", range(9))
    assert colors(here, is_extracted=True) == list(range(9))
    here.rename(tmp_path / "there")
    assert colors(tmp_path / "there", is_extracted=False) == list(range(9))
    shutil.copytree(tmp_path / "there", tmp_path / "copy", copy_function=shutil.copyfile)
    assert colors(tmp_path / "copy", is_extracted=False) == list(range(9))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_sets_with_the_same_names_never_share_features(colors, tmp_path):
    first, second = paint(tmp_path / "a", [1, 2, 3]), paint(tmp_path / "b", [1, 5, 3])
    for one, other in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True):
        assert one.name == other.name
        shutil.copystat(one, other)
    assert colors(first, is_extracted=True) == [1, 2, 3]
    assert colors(second, is_extracted=True) == [1, 5, 3]
    assert colors(first, is_extracted=False) == [1, 2, 3]
    assert colors(second, is_extracted=False) == [1, 5, 3]


def test_a_cache_of_a_version_that_named_it_by_the_image_folder_is_found_again(colors, tmp_path):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    (folder,) = (tmp_path / "cache").iterdir()
    folder = folder.rename(folder.with_name("0123456789abcdef"))
    assert colors(here, is_extracted=False) == [1, 2, 3]
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_two_machines_name_the_features_of_the_same_images_alike(colors, tmp_path):
    names = []
    for place in ("a/mount", "b/other"):
        colors(paint(tmp_path / place, [1, 2, 3]), cache=place[0], is_extracted=True)
        names += [path.name for path in (tmp_path / place[0]).iterdir() if path.name not in ("mount", "other")]
    assert len(names) == 2
    assert names[0] == names[1]


def test_images_elsewhere_that_only_a_time_tells_apart_get_features_of_their_own(colors, tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.data.contents.MAX_READ", 2)
    first, second = paint(tmp_path / "a", [1, 2, 3]), paint(tmp_path / "b", [1, 4, 3])
    for one, other in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True):
        shutil.copystat(one, other)
    assert (first / "@1@0@.jpg").stat().st_size == (second / "@1@0@.jpg").stat().st_size
    os.utime(second / "@1@0@.jpg", ns=(0, 0))
    for is_extracted in (True, False):
        assert colors(first, is_extracted=is_extracted) == [1, 2, 3]
        assert colors(second, is_extracted=is_extracted) == [1, 4, 3]


def test_a_set_that_was_copied_to_its_place_again_is_the_same_and_a_changed_image_is_not(colors, tmp_path):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    shutil.copytree(here, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(here)
    (tmp_path / "copy").rename(here)
    assert colors(here, is_extracted=False) == [1, 2, 3]
    paint(here, [1, 7, 3])
    with pytest.raises(ValueError, match=r"1 of 3 images looked at changed since .*, the first is .*/@1@0@.jpg"):
        colors(here, is_extracted=False)


def test_features_of_moved_images_are_extracted_again_for_another_network(colors, tmp_path):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    here.rename(tmp_path / "there")
    assert colors(tmp_path / "there", is_extracted=True, depends_on={"color": "hsv"}) == [1, 2, 3]


def test_what_the_program_did_not_write_in_a_cache_is_left_alone(colors, tmp_path):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    (folder,) = (tmp_path / "cache").iterdir()
    mine = {}
    for name in ("unreadable_old.json", "unreadable_00000 copy.json", "._unreadable_00000.json", "rows_00000 (1).npy"):
        mine[folder / name] = json.dumps({"1": "mine"})
        (folder / name).write_text(mine[folder / name])
    for name in ("mine", ".DS_Store", f"{folder.name} copy"):
        (tmp_path / "cache" / name).mkdir()
        shutil.copy(folder / "description.json", tmp_path / "cache" / name)
    assert colors(here, is_extracted=False) == [1, 2, 3]
    here.rename(tmp_path / "there")
    assert colors(tmp_path / "there", is_extracted=False) == [1, 2, 3]
    assert {path: path.read_text() for path in mine} == mine


def test_what_a_killed_process_left_beside_complete_features_is_removed(colors, tmp_path):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    (folder,) = (tmp_path / "cache").iterdir()
    names = {path.name for path in folder.iterdir()}
    (folder / ".claim_00000").write_text("another 1\n")
    (folder / ".rows_00000-01234567.progeo").touch()
    (folder / ".rows_00000-01234567.npy").touch()
    assert colors(here, is_extracted=False) == [1, 2, 3]
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("damage", [b"", b"<html>404</html>", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', ", None])
def test_a_damaged_list_of_files_is_named(colors, tmp_path, damage):
    here = paint(tmp_path / "here", [1, 2, 3])
    colors(here, is_extracted=True)
    (files,) = (tmp_path / "cache").glob("*/files.npy")
    files.unlink() if damage is None else files.write_bytes(damage)
    with pytest.raises(ValueError, match=rf"{files}.*: remove that folder, or name another `cache`"):
        colors(here, is_extracted=False)
    here.rename(tmp_path / "there")
    assert colors(tmp_path / "there", is_extracted=True) == [1, 2, 3]


def test_no_features_depend_on_how_many_images_there_are(tmp_path):
    sizes = []

    def extract(images):
        sizes.append(len(images))
        return torch.zeros(len(images), 1)

    def batch_sizes(count, folder, kind="hard_resize"):
        catalogue = read_catalogue(paint(tmp_path / folder, range(count), size=(40, 40)))
        extractor = FeatureExtractor(extract, "sizes", 1, (40, 40), kind, "bilinear", dict)
        cache = Cache(tmp_path / "cache", "float32", "cache")
        del sizes[:]
        how = {"cache": cache, "batch_size": 4, "num_workers": 0, "max_unreadable_fraction": 0.0}
        extract_features(extractor, catalogue, start_accelerator("no"), **how)
        return sizes

    assert batch_sizes(9, "nine") == [4, 4, 4]
    assert batch_sizes(3, "three") == [3]
    assert batch_sizes(9, "shapes", "native") == [4, 4, 1]


def test_an_image_repaired_before_its_features_are_extracted_is_not_a_changed_one(colors, tmp_path):
    here = paint(tmp_path / "here", [1] * 70)
    colors(here, is_extracted=True)
    (last,) = (tmp_path / "cache").glob("*/rows_00001.npy")
    last.unlink()  # as where it was stopped
    image = sorted(here.iterdir())[-1]
    Image.new("RGB", (9, 9), (90,) * 3).save(image)
    assert colors(here, is_extracted=True)[-2:] == [1, 9]
    assert colors(here, is_extracted=False)[-2:] == [1, 9]
