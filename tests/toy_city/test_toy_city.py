import hashlib

import numpy as np
import pytest
import utm
from PIL import Image

from progeo.places.catalogue import read_catalogue
from progeo.places.cells import build_partition, class_ids
from progeo.places.filename import parse_names
from progeo.places.geographic import positions_m
from progeo.places.positives import positives_within
from progeo.toy_city import render_toy_city

FOLDERS = ("train", "known/queries", "val/database", "val/queries", "test/database", "test/queries")


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*.jpg")}


def test_the_folders_hold_the_shares_promised_of_square_images(city):
    counts = [len(list((city / folder).iterdir())) for folder in FOLDERS]
    assert counts == [84, 6, 12, 6, 12, 6]
    for path in city.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_names_are_whole_and_their_coordinates_agree(city):
    parsed = parse_names([path.name for folder in FOLDERS for path in (city / folder).iterdir()])
    assert set(parsed.zone) == {10}
    assert set(parsed.letter) == {"S"}
    east, north, _, _ = utm.from_latlon(parsed.latitude, parsed.longitude, 10, "S")
    # Five decimals of a degree are about a meter.
    np.testing.assert_allclose(parsed.east, east, atol=1)
    np.testing.assert_allclose(parsed.north, north, atol=1)
    assert all(len(stamp) == 6 and 1 <= int(stamp[4:]) <= 12 for stamp in parsed.timestamp)
    assert not np.isnan(parsed.heading).any()


def test_splits_are_other_streets_far_from_each_other(city):
    splits = [
        np.concatenate(positions_m(*(read_catalogue(city / folder) for folder in FOLDERS if folder.startswith(split))))
        for split in ("train", "val", "test")
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(splits[i][:, None] - splits[j][None], axis=2).min() > 50


@pytest.fixture(scope="module")
def places(city):
    """The training images and their only group of classes."""
    cells = {"cell_side_m": 10, "heading_bin_deg": 30, "groups_per_side": 1, "groups_per_heading": 1}
    catalogue = read_catalogue(city / "train")
    (group,) = build_partition(catalogue, **cells, min_images_per_class=2, num_groups=1).groups
    return catalogue, group


def stamps_of(catalogue):
    return parse_names(catalogue.table["path"].to_pylist()).timestamp


def test_every_training_place_is_one_class_seen_at_about_ten_dates(places):
    catalogue, group = places
    sizes = np.diff(group.offsets)
    assert sizes.sum() == 84
    assert sizes.min() >= 10
    stamps = stamps_of(catalogue)
    for label in range(group.num_classes):
        rows = group.rows[group.offsets[label] : group.offsets[label + 1]]
        assert len(set(stamps[rows])) == len(rows)


def test_known_queries_are_training_places_at_another_date(city, places):
    catalogue, group = places
    known = read_catalogue(city / "known/queries")
    ids = class_ids(known.east, known.north, known.heading, cell_side_m=10, heading_bin_deg=30)
    known_ids, trained_ids = ([tuple(each) for each in some.tolist()] for some in (ids, group.class_ids))
    assert len(set(known_ids)) == 6
    assert set(known_ids) <= set(trained_ids)
    stamps = stamps_of(catalogue)
    for class_id, stamp in zip(known_ids, stamps_of(known), strict=True):
        label = trained_ids.index(class_id)
        assert stamp not in stamps[group.rows[group.offsets[label] : group.offsets[label + 1]]]


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_query_has_a_database_image_near_taken_at_another_date(city, split):
    database, queries = read_catalogue(city / split / "database"), read_catalogue(city / split / "queries")
    positives = positives_within(*positions_m(database, queries), 25)
    assert all(len(rows) for rows in positives)
    dates = [stamps_of(catalogue) for catalogue in (database, queries)]
    for query, rows in enumerate(positives):
        assert dates[1][query] not in set(dates[0][rows])


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    alone, together, other = (
        digests(render_toy_city(tmp_path / name, num_images=20, image_size=32, seed=seed, workers=workers))
        for name, seed, workers in (("alone", 0, 1), ("together", 0, 2), ("other", 1, 1))
    )
    assert len(alone) > 20 and alone == together
    assert not set(alone.values()) & set(other.values())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        render_toy_city(tmp_path, num_images=40)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_few_images_are_refused_with_how_many_are_needed(tmp_path):
    with pytest.raises(ValueError, match="num_images must be at least 20 for three splits, got 5"):
        render_toy_city(tmp_path / "city", num_images=5)
    assert not (tmp_path / "city").exists()
