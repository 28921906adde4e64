"""Matches of a place index that are verified: matched with the photo, and ranked by inliers."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from indexes import command, localized
from running import files_in
from torchvision.transforms.v2.functional import to_pil_image
from verification.pictures import texture, warped

import progeo
from progeo.cli import main
from progeo.data.decode import read_image
from progeo.evaluation.search import Neighbors
from progeo.localization.confidence import Verification, VerifiedCalibration
from progeo.localization.place_index import open_place_index
from progeo.verification.feature_file import open_feature_file, to_store, write_feature_file
from progeo.verification.local_features import extract_local_features

NUM_PLACES = 5
NUM_STRANGERS = 6
HEIGHT, WIDTH = 96, 320
SHIFT_PX = np.array([20, -8])
"""By which the views of places are moved."""


def place(number):
    return texture(number, HEIGHT, WIDTH)


def save(pixels, folder, number, name="", north_m=4_100_000):
    folder.mkdir(exist_ok=True)
    to_pil_image(pixels).save(folder / f"@{500_000 + 100 * number}@{north_m}@10@S@@@{name}@.png")


def repainted(number, num_columns):
    """The picture of a place with some white columns, whose descriptor hardly differs."""
    pixels = place(number)
    pixels[:, :, :num_columns] = 255
    return pixels


def view(number, shift_px):
    homography = np.eye(3)
    homography[:2, 2] = shift_px
    return warped(place(number), homography)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of places 100 m apart, photos of each, easy and hard to find, and of places that are not among them."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_PLACES):
        save(place(number), folder / "database", number)
        save(repainted(number, 1), folder / "photos", number, "repainted")
        for factor in (1, -1, 2):
            save(view(number, factor * SHIFT_PX), folder / "photos", number, f"view{factor}")
    for number in range(20, 20 + NUM_STRANGERS):
        save(place(number), folder / "photos", number)
    return folder


@pytest.fixture(scope="module")
def built(images, encoder, cache, tmp_path_factory):
    """An index with local features, whose images are gone."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(images / "database", folder / "database")
    command("index build", cache, folder=folder / "database", encoder=encoder, out=folder / "index", verify=True)
    shutil.rmtree(folder / "database")
    return folder / "index"


@pytest.fixture(scope="module")
def calibrated(built, images, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "index"
    shutil.copytree(built, folder)
    command("index calibrate", cache, folder=images / "photos", index=folder, verify=True)
    return folder


@pytest.fixture
def index(built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


FEATURES = "part_00000/features.arrow"


def flip_bit(features_file, row):
    """Make the stored local features of an image corrupt."""
    content, stored = features_file.read_bytes(), list(open_feature_file(features_file).stored())[row].values
    middle = content.index(stored) + len(stored) // 2
    features_file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def metadata_of(folder):
    return json.loads((folder / "index.json").read_text())


def place_of(match):
    return round((match.east_m - 500_000) / 100)


def same(one, other):
    return np.array_equal(one.steps, other.steps) and np.array_equal(one.descriptors, other.descriptors)


def test_an_index_holds_the_local_features_of_its_images_and_no_other_file(built, images):
    opened = open_place_index(built)
    names = ("catalogue.arrow", "descriptors.npy", "features.arrow", "paths.npy")
    files = {"index.json", *(f"part_00000/{name}" for name in names)}
    assert {name for name in files_in(built) if "model/" not in name} == files
    for row in range(NUM_PLACES):
        image = read_image(images / "database" / opened.catalogue.name(row).rpartition("/")[2])
        assert same(opened.features.features(row), extract_local_features(image))


def test_verified_matches_are_ranked_by_the_points_that_match_without_the_images(built):
    opened = progeo.open_index(built, device="cpu")
    photo = view(4, SHIFT_PX)
    (plain,) = opened.localize(photo, top=NUM_PLACES, verify=False)
    assert not plain.verified and {match.inliers for match in plain.matches} == {None}
    assert opened.localize(photo, top=NUM_PLACES) == [plain]  # without calibration, none is verified
    (result,) = opened.localize(photo, top=NUM_PLACES, verify=True)
    assert result.verified and result.confidence is None
    inliers = [match.inliers for match in result.matches]
    assert inliers == sorted(inliers, reverse=True) and inliers[0] > 30 > 15 > inliers[1]
    first = result.matches[0]
    assert place_of(first) == 4
    assert len(first.lines) == min(first.inliers, 100)
    lines = np.array(first.lines) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert np.abs(lines[:, :2] - lines[:, 2:] - SHIFT_PX).max() < 3
    before = {match.row: (match.distance, match.path) for match in plain.matches}
    assert before == {match.row: (match.distance, match.path) for match in result.matches}
    (short,) = opened.localize(photo, top=1, verify=True)
    assert short.matches == result.matches[:1]
    assert str(short).splitlines()[-1].split("  ")[-3].strip() == f"{first.inliers} points"


def test_threads_that_share_an_index_verify_as_one_alone_does(built):
    opened = progeo.open_index(built, device="cpu")
    photos = [view(number, SHIFT_PX) for number in range(NUM_PLACES)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda photo: opened.localize(photo, verify=True)[0], photos))
    assert [place_of(result.matches[0]) for result in found] == list(range(NUM_PLACES))
    assert found == [opened.localize(photo, verify=True)[0] for photo in photos]


def test_for_confidence_all_but_the_first_match_stay_in_the_order_of_descriptors(built):
    opened = open_place_index(built)
    row_of = {round((east - 500_000) / 100): row for row, east in enumerate(opened.catalogue.east.tolist())}
    rows = np.array([[row_of[number] for number in (2, 4, 1, 3, 0)]] * 2)
    distances = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]] * 2)
    photo = place(3)
    photo[:, :, 200:] = place(1)[:, :, 200:]
    found = opened.verifier.verified(lambda _: photo, Neighbors(rows, distances), np.array([1]), num_kept=1)
    assert found.neighbors.rows[1].tolist() == [row_of[number] for number in (3, 1, 2, 4, 0)]
    assert found.neighbors.distances[1].tolist() == [0.4, 0.3, 0.1, 0.2, 0.5]
    assert found.nearest.rows[1].tolist() == [row_of[number] for number in (3, 2, 4, 1, 0)]
    assert found.nearest.distances[1].tolist() == [0.4, 0.1, 0.2, 0.3, 0.5]
    assert found.is_verified.tolist() == [False, True]
    for neighbors in (found.neighbors, found.nearest):
        assert (neighbors.rows[0].tolist(), neighbors.distances[0].tolist()) == (
            rows[0].tolist(),
            distances[0].tolist(),
        )
    assert found.inliers[0].tolist() == [-1] * 5 and list(found.pairs) == [(1, 0)]


def test_matches_near_a_position_are_verified_too(built):
    opened = progeo.open_index(built, device="cpu")
    latitude, longitude = (opened.catalogue.table[name][2].as_py() for name in ("latitude", "longitude"))
    (result,) = opened.localize(view(2, SHIFT_PX), near=(latitude, longitude, 150), verify=True)
    assert (len(result.matches), place_of(result.matches[0]), result.confidence) == (3, 2, None)
    assert result.verified and result.is_restricted


def test_calibration_finds_which_photos_to_verify_and_counts_inliers_for_confidence(calibrated, capsys):
    verification = metadata_of(calibrated)["verification"]
    assert (verification["matcher"], verification["top"]) == ("sift", 20)
    assert 0 < verification["below"] <= 1
    assert len(verification["calibration"]["weights"]) == 4
    without, verified = (each["calibration"]["num_correct"] for each in (metadata_of(calibrated), verification))
    assert verified == 4 * NUM_PLACES > without
    opened = progeo.open_index(calibrated, device="cpu")
    photos = [view(number, factor * SHIFT_PX) for number in range(NUM_PLACES) for factor in (0.01, 1.5)]
    plain, adaptive, always = (opened.localize(photos, verify=verify) for verify in (False, None, True))
    for number, (one, some, all_) in enumerate(zip(plain, adaptive, always, strict=True)):
        assert some == (all_ if one.confidence < verification["below"] else one)
        assert (place_of(all_.matches[0]), all_.verified, one.verified) == (number // 2, True, False)
        assert all_.confidence > 0.8
    assert {result.verified for result in adaptive} == {True, False}
    stranger = opened.localize(place(99), verify=True)[0]
    assert stranger.confidence < 0.5 and stranger.known is False


@pytest.mark.slow
def test_verification_that_does_not_help_is_switched_off_and_says_so(index, images, cache, tmp_path, capsys):
    for number in range(NUM_PLACES):
        for pixel in (1, 2, 3, 4):
            save(repainted(number, pixel), tmp_path / "same", number, f"view{pixel}")
    command("index calibrate", cache, folder=tmp_path / "same", index=index, verify=True)
    assert (
        "verification does not help on these photos more than chance would: it is switched off"
        in capsys.readouterr().err
    )
    assert metadata_of(index)["verification"]["below"] == 0
    opened = progeo.open_index(index, device="cpu")
    assert not opened.localize(place(3))[0].verified
    assert opened.localize(place(3), verify=True)[0].verified
    command("index calibrate", cache, folder=tmp_path / "same", index=index)
    assert metadata_of(index)["verification"] is None
    opened = progeo.open_index(index, device="cpu")
    capsys.readouterr()
    for _ in range(2):
        (result,) = opened.localize(place(3), verify=True)
    assert capsys.readouterr().err.count("so that verified photos have no confidence") == 1
    assert (result.confidence, result.known, result.verified) == (None, None, True)
    assert 0 < opened.localize(place(3))[0].confidence < 1


def test_added_images_get_local_features_in_their_rows(index, cache, tmp_path):
    for number in (7, 8, 9):  # by name from west to east, in the order of cells from south to north
        save(place(number), tmp_path / "more", number, north_m=4_105_000 - 500 * number)
    command("index add", cache, folder=tmp_path / "more", index=index)
    opened = open_place_index(index)
    assert len(opened.features) == len(opened.catalogue) == NUM_PLACES + 3
    for row in range(NUM_PLACES + 3):
        number = round((opened.catalogue.east[row] - 500_000) / 100)
        assert same(opened.features.features(row), extract_local_features(place(number)))
    (result,) = localized(index, next((tmp_path / "more").iterdir()), verify=True)
    assert result.matches[0].inliers > 100


def test_corrupt_local_features_stay_corrupt_when_images_are_added(index, cache, tmp_path):
    flip_bit(index / FEATURES, row=3)
    save(place(7), tmp_path / "more", 7)
    command("index add", cache, folder=tmp_path / "more", index=index)
    features = open_place_index(index).features
    assert len(features) == NUM_PLACES + 1
    assert len(features.features(2)) > 0
    with pytest.raises(ValueError, match="is corrupt at row 3"):
        features.features(3)


def test_a_photo_of_whose_matches_too_few_can_be_matched_is_not_verified(index, capsys):
    features_file = index / FEATURES
    opened = progeo.open_index(index, device="cpu")
    plain, whole = (opened.localize(view(4, SHIFT_PX), top=NUM_PLACES, verify=verify) for verify in (False, True))
    assert whole[0].verified
    for row in (0, 1):
        flip_bit(features_file, row)
    opened = progeo.open_index(index, device="cpu")
    capsys.readouterr()
    assert opened.localize(view(4, SHIFT_PX), top=NUM_PLACES, verify=True) == plain
    said = capsys.readouterr().err
    assert any(f"The local features of {opened.catalogue.path(row)} cannot be read" in said for row in (0, 1))
    assert "fewer than 75 % can be matched is not verified: put the images back" in said


def test_an_image_without_stored_features_is_read(images, index):
    path = index / FEATURES
    stored = list(open_feature_file(path).stored())
    write_feature_file(path, [to_store(None), *stored[1:]])
    metadata = metadata_of(index)
    metadata["parts"][0]["files"][path.name]["digest"] = open_feature_file(path).fingerprint
    (index / "index.json").write_text(json.dumps(metadata))
    opened = progeo.open_index(index, device="cpu")
    image = opened.catalogue.path(0)
    image.parent.mkdir()
    try:
        shutil.copy(images / "database" / image.name, image)
        (result,) = opened.localize(place(0), top=NUM_PLACES, verify=True)
    finally:
        shutil.rmtree(image.parent)
    assert (result.matches[0].row, {match.inliers is None for match in result.matches}) == (0, {False})


@pytest.mark.slow
def test_images_that_are_gone_are_not_matched_and_said_once(images, encoder, cache, tmp_path, capsys):
    shutil.copytree(images / "database", tmp_path / "images")
    command("index build", cache, folder=tmp_path / "images", encoder=encoder, out=tmp_path / "index")
    opened = progeo.open_index(tmp_path / "index", device="cpu")
    (whole,) = opened.localize(view(1, SHIFT_PX), top=NUM_PLACES, verify=True)
    assert place_of(whole.matches[0]) == 1
    (tmp_path / "images" / "@500300@4100000@10@S@@@@.png").unlink()
    opened = progeo.open_index(tmp_path / "index", device="cpu")
    for _ in range(2):
        (result,) = opened.localize(view(1, SHIFT_PX), top=NUM_PLACES, verify=True)
    assert [match.row for match in result.matches if place_of(match) != 3] == [
        match.row for match in whole.matches if place_of(match) != 3
    ]
    assert (place_of(result.matches[-1]), result.matches[-1].inliers, result.verified) == (3, None, True)
    said = capsys.readouterr().err
    assert said.count("candidates cannot be matched") == 1 and "There is no image" in said
    shutil.rmtree(tmp_path / "images")
    opened = progeo.open_index(tmp_path / "index", device="cpu")
    (result,) = opened.localize(view(1, SHIFT_PX), verify=True)
    assert not result.verified and result.matches == opened.localize(view(1, SHIFT_PX))[0].matches


def test_corrupt_local_features_are_one_sentence_or_a_candidate_that_is_not_matched(index, capsys):
    path = index / FEATURES
    content = path.read_bytes()
    flip_bit(path, row=3)
    (result,) = progeo.open_index(index, device="cpu").localize(place(3), top=NUM_PLACES, verify=True)
    assert result.matches[-1].inliers is None and result.verified
    assert f"{path} is corrupt at row {result.matches[-1].row} (its checksum is another)" in capsys.readouterr().err
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{path} is no file of local features: .* Build the index anew"):
        open_place_index(index)


def test_local_features_of_another_version_or_generation_are_refused(index):
    path = index / FEATURES
    stored = list(open_feature_file(path).stored())
    write_feature_file(path, stored[::-1])
    with pytest.raises(ValueError, match=f"{path} is corrupt: index.json has the digest of other content"):
        open_place_index(index)
    with pa.ipc.open_file(path) as file:
        table = file.read_all().replace_schema_metadata({"features": "rootsift 0"})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=f"{path} is no file of local features: it is of another version. Build the"):
        open_place_index(index)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("index calibrate --matcher vismatch:loftr", "--matcher vismatch:loftr is for verification: set --verify"),
        ("index calibrate --verify --matcher surf", "There is no matcher 'surf': take sift or vismatch:NAME"),
        (
            "index build --of classes --verify",
            "--verify stores local features of images: take --of images, got classes",
        ),
        ("localize --text street --verify true", "--verify matches photos, and --text is none: omit one of them"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, message, built, images, encoder, tmp_path):
    files = {
        "calibrate": ["--index", built, "--folder", images / "photos"],
        "build": ["--encoder", encoder, "--out", tmp_path / "index"],
        "--text": ["--index", built],
    }[words.split()[1]]
    with pytest.raises(SystemExit, match=message):
        main([*words.split(), *map(str, files)])


def test_a_matcher_that_does_not_exist_is_refused_with_the_index_that_names_it(built):
    opened = open_place_index(built)
    calibration = VerifiedCalibration(25, (0,) * 3, (1,) * 3, (0,) * 4, num_photos=30, num_correct=20, error=0.1)
    metadata = replace(opened.metadata, verification=Verification("surf", 20, 0.5, calibration))
    words = f"^{built} cannot be verified as its index.json says: There is no matcher 'surf': take sift or"
    with pytest.raises(ValueError, match=words):
        _ = replace(opened, metadata=metadata).verifier
