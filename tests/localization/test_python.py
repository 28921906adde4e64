"""The Python API: photos of any kind, near a position, from several threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from indexes import command, localized
from PIL import Image

import progeo
from progeo.places.distances import EARTH_RADIUS_M
from progeo.places.nearby import HeadingRange


@pytest.fixture(scope="module")
def folder(city, encoder, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "index"
    command("index build", cache, folder=city / "train", encoder=encoder, out=folder)
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return progeo.open_index(folder, device="cpu")


@pytest.fixture(scope="module")
def photo(city):
    return sorted((city / "test/queries").iterdir())[0]


def test_a_photo_is_localized_alike_whatever_it_comes_as(index, photo):
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    with photo.open("rb") as stream, Image.open(photo) as image:
        kinds = [photo, str(photo), photo.read_bytes(), stream, image, pixels, torch.tensor(pixels).permute(2, 0, 1)]
        kinds += [bytearray(photo.read_bytes()), memoryview(photo.read_bytes())]
        kinds.append(np.ascontiguousarray(pixels[..., ::-1])[..., ::-1])  # as OpenCV's pixels are turned to RGB
        several = index.localize(kinds, top=3)
        alone = [index.localize(each, top=3) for each in kinds]
    expected = several[0].matches
    assert [match.row for match in expected] == [
        match.row for match in localized(index.folder, photo, top=3)[0].matches
    ]
    for one in (*several, *(result for (result,) in alone)):
        assert [match.row for match in one.matches] == [match.row for match in expected]
        assert (one.latitude, one.longitude) == (expected[0].latitude, expected[0].longitude)
    assert [one.query for one in several] == [str(photo)] * 2 + [f"photo {number}" for number in range(3, 11)]
    batch = index.localize(np.stack([pixels, pixels]), top=3)
    assert [one.matches for one in batch] == [expected] * 2


def test_a_match_tells_its_row_and_its_heading(index, photo):
    (result,) = index.localize(photo, top=2)
    for match in result.matches:
        assert index.catalogue.table["path"][match.row].as_py() == match.path
        assert index.catalogue.heading[match.row] == match.heading_deg


def test_threads_that_share_an_index_get_what_one_alone_gets(city, index):
    photos = sorted((city / "test/queries").iterdir())
    expected = [index.localize(each) for each in photos]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(index.localize, photos * 3)) == expected * 3


def test_a_photo_that_cannot_be_read_is_a_result_with_an_error_among_others(index, photo, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good, broken, truncated = index.localize([photo, tmp_path / "broken.jpg", photo.read_bytes()[:500]])
    assert good.matches and not good.error
    assert broken.error.startswith(f"The image {tmp_path}/broken.jpg cannot be decoded")
    assert truncated.error.startswith("The image photo 3 cannot be decoded") and truncated.latitude is None
    with pytest.raises(ValueError, match=r"There is no image .*missing.jpg"):
        index.localize(tmp_path / "missing.jpg")
    assert index.localize([]) == index.localize([], near=[]) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((5, 5, 3)), r"got ndarray of float64 \(5, 5, 3\)"),
        (torch.zeros(5, 5, 3, dtype=torch.uint8), r"got Tensor of torch.uint8 \(5, 5, 3\)"),
        (np.zeros((5, 4), np.uint8), r"got ndarray of uint8 \(5, 4\)"),
        ([3], "got int"),
        (None, "got NoneType"),
    ],
)
def test_something_that_is_no_photo_is_refused(index, wrong, words):
    with pytest.raises(ValueError, match=rf"A photo must be a path.*{words}"):
        index.localize(wrong)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top": 0}, "`top` must be an integer of at least 1, got 0"),
        ({"top": 1.5}, "`top` must be an integer of at least 1, got 1.5"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be an integer of at least 0, got -1"),
        ({"threshold": 7}, "`threshold` must be a probability from 0 to 1, got 7"),
        ({"threshold": "0.5"}, "`threshold` must be a probability from 0 to 1, got '0.5'"),
    ],
)
def test_options_out_of_range_are_refused_before_a_photo_is_read(index, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        index.localize("missing.jpg", **options)


def test_nothing_where_an_index_or_an_encoder_should_be_is_refused(index, photo):
    with pytest.raises(ValueError, match="`folder` must be the path of a place index, got None"):
        progeo.open_index(None)
    with pytest.raises(ValueError, match="`encoder` must be an encoder or the name of one, got NoneType"):
        progeo.extract(photo, None)
    with pytest.raises(ValueError, match=r"A photo must be a path.* got NoneType"):
        progeo.extract(None, index.encoder)
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        progeo.extract(photo, index.encoder, batch_size=0)


def test_an_index_without_positions_cannot_be_searched_near_one(index, photo):
    parts = [replace(part, metadata=replace(part.metadata, num_degrees=0)) for part in index.parts]
    nowhere = replace(index, store=replace(index.store, parts=parts))
    for near in ((1, 2, 3), [(1, 2, 3)]):
        with pytest.raises(ValueError, match=r"`near` cannot be used: no latitude and longitude is known"):
            nowhere.localize(photo, near=near)


def distances_m(catalogue, latitude, longitude):
    here = np.radians([latitude, longitude])
    there = np.radians([catalogue.table[name].to_numpy() for name in ("latitude", "longitude")])
    chord = np.sin((there[0] - here[0]) / 2) ** 2
    chord += np.cos(here[0]) * np.cos(there[0]) * np.sin((there[1] - here[1]) / 2) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(chord))


def test_near_a_position_only_images_within_the_radius_match_in_the_order_of_all(index, photo):
    (everywhere,) = index.localize(photo, top=len(index.catalogue))
    at = everywhere.matches[4]
    meters = distances_m(index.catalogue, at.latitude, at.longitude)
    for radius_m in (15.0, 60.0):
        near = (at.latitude, at.longitude, radius_m)
        (result,) = index.localize(photo, top=len(index.catalogue), near=near)
        expected = [match.row for match in everywhere.matches if meters[match.row] <= radius_m]
        assert 0 < len(expected) < len(index.catalogue)
        assert [match.row for match in result.matches] == expected
        assert (result.is_restricted, result.confidence, result.known) == (True, None, None)


def test_each_photo_may_have_its_own_position_and_an_error_of_its_own(index, city):
    photos = sorted((city / "test/queries").iterdir())[:4]
    at = [result.matches[4] for result in index.localize(photos)]
    nears = [(each.latitude, each.longitude, radius) for each, radius in zip(at, (15, 60.0, 30, 1), strict=True)]
    nears[2] = (0, 0, 30)
    headings = [(0, 180), (0, 180), (0, 180), HeadingRange(at[3].heading_deg, 1)]
    results = index.localize(photos, near=nears, heading=headings)
    for number in (0, 1, 3):
        (alone,) = index.localize(photos[number], near=nears[number], heading=headings[number])
        assert [match.row for match in results[number].matches] == [match.row for match in alone.matches]
    assert len(results[1].matches) > len(results[3].matches) > 0
    assert results[2].matches == () and results[2].is_restricted
    assert results[2].error.endswith("near its position or heading: take a larger radius or tolerance.")
    lost = index.localize(photos[:2], near=np.array([(0, 0, 30), (0, 1, 30)]), heading=(0, 180))
    assert [bool(result.error) for result in lost] == [True, True]


def test_a_heading_excludes_images_that_look_elsewhere(index, photo):
    (everywhere,) = index.localize(photo, top=len(index.catalogue))
    (result,) = index.localize(photo, top=len(index.catalogue), heading=(350, 40))
    headings = index.catalogue.heading
    expected = [match.row for match in everywhere.matches if abs((headings[match.row] - 350 + 180) % 360 - 180) <= 40]
    assert 0 < len(expected) < len(everywhere.matches)
    assert [match.row for match in result.matches] == expected


def test_images_of_an_index_are_stored_in_the_order_of_cells_with_their_own_descriptors(index, city, cache):
    paths = index.catalogue.table["path"].to_pylist()
    assert paths != sorted(paths) and sorted(paths) == sorted(map(str, (city / "train").iterdir()))
    for row in (0, 5, len(paths) - 1):
        (match,) = index.localize(paths[row], top=1)[0].matches
        assert (match.row, match.distance) == (row, pytest.approx(0, abs=1e-3))


@pytest.mark.parametrize(
    ("restriction", "words"),
    [
        ({"near": (0, 0, 10)}, r"None of the .* images of .* lies within 10 m of 0, 0: take a larger radius\.$"),
        ({"near": (91, 0, 10)}, "`near` must be a latitude from -90 to 90"),
        ({"heading": (0, 200)}, "`heading` must be degrees clockwise from north and a tolerance"),
        (
            {"near": (1, 2)},
            r"`near` must be a latitude, a longitude and a radius .*, got \(1, 2\). Use for example \(37",
        ),
        (
            {"near": (1, 2, None)},
            r"`near` must be a latitude, a longitude and a radius in meters, got \(1, 2, None\)",
        ),
        ({"near": "1,2,3"}, "`near` must be a latitude, a longitude and a radius in meters, got '1,2,3'"),
        ({"near": "123"}, "`near` must be a latitude, a longitude and a radius in meters, got '123'"),
        ({"near": 500}, "`near` must be a latitude, a longitude and a radius in meters, got 500"),
        ({"near": [(1, 2)]}, r"`near` must be a latitude, a longitude and a radius in meters, got \(1, 2\)"),
        ({"near": [None]}, "`near` must be a latitude, a longitude and a radius in meters, got None"),
        ({"heading": (1, 2, 3)}, r"`heading` must be degrees clockwise from north and a tolerance, got \(1, 2, 3\)"),
        ({"near": [(1, 2, 3)] * 2}, "`near` must be one for all photos or one for each, got 2 for 1 photos"),
    ],
)
def test_a_restriction_that_cannot_be_met_is_refused(index, photo, restriction, words):
    with pytest.raises(ValueError, match=words):
        index.localize(photo, **restriction)


def test_the_command_takes_a_rough_position(index, folder, photo, capsys):
    at = index.localize(photo)[0]
    near = f"{at.latitude},{at.longitude},15"
    (found,) = localized(folder, photo, near=near)
    assert found.matches == index.localize(photo, near=(at.latitude, at.longitude, 15))[0].matches
    with pytest.raises(ValueError, match="`near` must be LAT,LON,RADIUS_M, got '1,2'"):
        localized(folder, photo, near="1,2")


def test_descriptors_are_extracted_from_photos(index, encoder, photo):
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    found = progeo.extract([photo, pixels], encoder, device="cpu")
    loaded = progeo.load_encoder(encoder)
    with torch.inference_mode():
        expected = loaded(loaded.preprocess(Image.open(photo))[None])[0].numpy()
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-5)
    with pytest.raises(ValueError, match=r"There is no image nowhere\.jpg"):
        progeo.extract("nowhere.jpg", loaded)


def test_half_precision_changes_distances_a_little(index, folder, photo):
    full, half = (
        each.localize(photo)[0].matches[0] for each in (index, progeo.open_index(folder, mixed_precision="bf16"))
    )
    assert 0 < abs(full.distance - half.distance) < 0.1


def test_a_device_that_does_not_exist_is_refused(folder):
    with pytest.raises(ValueError, match="`device` abacus cannot be used"):
        progeo.open_index(folder, device="abacus")


def test_all_public_names_are_there_and_importing_progeo_imports_no_torch():
    assert all(hasattr(progeo, name) for name in progeo.__all__)
    code = "import progeo, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
