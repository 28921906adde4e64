import faiss
import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of

from progeo.evaluation.cell_index import (
    Cells,
    build_cell_index,
    cell_neighbors,
    cell_of_images,
    cells_of_catalogue,
    class_quantizer,
)
from progeo.evaluation.classification import rank_classes
from progeo.evaluation.predict import open_cell_index
from progeo.evaluation.search import map_index, nearest_neighbors, save_index
from progeo.features.store import ShardedRows
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import Catalogue


@pytest.mark.parametrize(
    ("position", "heading", "expected"),
    [
        ((0, 0), 0, 0),  # a cell holds its lower edge
        ((19.9, 19.9), 45, 0),
        ((20, 10), 10, 2),  # as far from the center of the cell at its west
        ((25, 5), 200, 3),  # both bins of this cell have a class
        ((25, 5), 100, 2),  # its bin has no class: 45 is nearer than 225
        ((25, 5), 300, 3),
        ((25, 5), np.nan, 2),  # without a heading: bin 0
        ((25, 5), 359, 2),  # across north: 46 degrees from 45, 134 from 225
        ((1000, 1000), 0, 4),  # its cell has no class
        ((61, 10), 0, 4),  # the nearest of two cells
        ((49, 10), 190, 3),
        ((-1e6, 10), 0, 0),
    ],
)
def test_an_image_belongs_to_its_own_class_or_to_the_nearest(position, heading, expected):
    classifier = classifier_of(
        [[0, 0, 0], [0, 0, 90], [20, 0, 0], [20, 0, 180], [80, 0, 90]], groups_per_side=1, heading_bin_deg=90
    )
    assert cell_of_images(np.array([position]), np.array([heading]), classifier).tolist() == [expected]


@pytest.mark.parametrize("heading_bin_deg", [360, 30])
def test_images_of_classes_belong_to_their_classes(heading_bin_deg):
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(0, [40, 40, 360 // heading_bin_deg], (400, 3)), axis=0)
    ids = ids * [7, 7, heading_bin_deg] + [549_000 // 7 * 7, 4_180_000 // 7 * 7, 0]
    classifier = classifier_of(ids, cell_side_m=7, heading_bin_deg=heading_bin_deg)
    rows = rng.integers(0, len(ids), 2000)
    offsets = rng.uniform(0, [7, 7, heading_bin_deg], (2000, 3)) * rng.integers(0, 2, (2000, 3))  # many on borders
    images = classifier.class_ids[rows] + offsets
    assert cell_of_images(images[:, :2], images[:, 2], classifier).tolist() == rows.tolist()


def test_images_of_a_catalogue_without_a_position_have_no_cell():
    classifier = classifier_of([[500_000, 4_000_000, 0], [500_100, 4_000_000, 0]], groups_per_side=1)
    columns = {"east": [500_105.0, np.nan, 500_003], "north": [4_000_005.0, np.nan, 4_000_005]}
    columns |= {"zone": pa.array([10, 0, 10], pa.int8()), "heading": [np.nan, np.nan, np.nan]}
    images = Catalogue(classifier.catalogue.folder, pa.table({"path": ["a", "b", "c"], **columns}))
    assert cells_of_catalogue(images, classifier).tolist() == [1, -1, 0]


@pytest.fixture
def city(tmp_path):
    """2,000 descriptors of 40 classes, of which every tenth has no image, in files of 600."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16)).astype(np.float32)
    filled = np.flatnonzero(np.arange(40) % 10 != 3)
    labels = rng.choice(filled, 2000)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    values = unit[labels] + 0.2 * rng.normal(size=(2000, 16))
    rows = ShardedRows(tmp_path, num_rows=2000, width=16, shard_size=600, dtype="float32")
    for shard in rows.shards:
        rows.write_shard(shard, values[rows.shard_rows(shard)].astype(np.float32))
    return rows, labels, vectors, rng.normal(size=(50, 16)).astype(np.float32)


def expected_neighbors(rows, labels, queries, cells, count):
    """The nearest images of the cells of each query, in loops."""
    values, found = np.concatenate(list(rows.parts())), []
    for query, own in zip(queries, cells, strict=True):
        members = np.flatnonzero(np.isin(labels, own))
        distances = np.linalg.norm(values[members] - query, axis=1)
        found.append(members[np.argsort(distances)][:count].tolist())
    return found


@pytest.mark.parametrize("probes", [1, 3])
def test_the_images_of_the_best_cells_that_have_images_are_searched_exactly(city, tmp_path, probes):
    rows, labels, vectors, queries = city
    built = build_cell_index(rows, labels, vectors)
    save_index(built, tmp_path / "cells.faiss")
    ranked = rank_classes(queries, vectors, normalize=True, count=40).rows
    assert np.isin(ranked[:, 0], [3, 13, 23, 33]).any()
    cells = [[row for row in each.tolist() if row % 10 != 3][:probes] for each in ranked]
    expected = expected_neighbors(rows, labels, queries, cells, 5)
    for index in (built, map_index(tmp_path / "cells.faiss", probes=probes)):
        found = cell_neighbors(index, queries, 5, probes=probes)
        assert found.neighbors.rows.tolist() == expected
        assert found.rows_read.tolist() == [int(np.isin(labels, own).sum()) for own in cells]


def test_all_cells_find_what_an_exact_search_finds(city):
    rows, labels, vectors, queries = city
    exact = nearest_neighbors(rows.parts(), queries, 10)
    found = cell_neighbors(build_cell_index(rows, labels, vectors), queries, 10, probes=1000)
    assert found.neighbors.rows.tolist() == exact.rows.tolist()
    np.testing.assert_allclose(found.neighbors.distances, exact.distances, rtol=1e-5)
    assert set(found.rows_read.tolist()) == {2000}


def test_another_network_can_choose_the_cells(city):
    rows, labels, _, queries = city
    rng = np.random.default_rng(1)
    others, other_queries = rng.normal(size=(40, 7)), rng.normal(size=(50, 7)).astype(np.float32)
    ranked = rank_classes(other_queries, others, normalize=True, count=40).rows
    cells = [[row for row in each.tolist() if row % 10 != 3][:2] for each in ranked]
    index = build_cell_index(rows, labels, None, num_classes=40)
    quantizer = class_quantizer(others)
    found = cell_neighbors(index, queries, 5, probes=2, quantizer=quantizer, quantizer_queries=other_queries)
    assert found.neighbors.rows.tolist() == expected_neighbors(rows, labels, queries, cells, 5)


def test_excluded_images_are_skipped_and_those_of_unknown_cells_go_to_the_best_vector(city):
    rows, labels, vectors, _ = city
    missing = np.array([0, 700, 701])
    labels = np.delete(labels, missing)
    labels[::7] = -1
    rows = rows.without(missing)
    index = build_cell_index(rows, labels, vectors)
    values = np.concatenate(list(rows.parts()))
    assert index.ntotal == len(values) == 1997
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.where(labels < 0, np.linalg.norm(values[:, None] - unit, axis=2).argmin(axis=1), labels)
    for label in range(40):
        invlist = index.invlists
        size = invlist.list_size(label)
        ids = faiss.rev_swig_ptr(invlist.get_ids(label), size).tolist() if size else []
        assert sorted(ids) == np.flatnonzero(expected == label).tolist()


def test_cells_with_too_few_images_leave_room(city):
    rows, labels, vectors, queries = city
    labels = np.where(labels == labels[0], 0, 1)
    found = cell_neighbors(build_cell_index(rows, labels, vectors), queries, 2000, probes=1)
    assert ((found.neighbors.rows >= 0).sum(axis=1) == found.rows_read).all()


def test_images_of_unknown_cells_need_class_vectors_of_their_own_network(city):
    rows, labels, _, _ = city
    labels[[3, 5]] = -1
    with pytest.raises(ValueError, match=r"2 of 2,000 images have no known position.*`classifier`"):
        build_cell_index(rows, labels, None, num_classes=40)


def test_a_stored_index_of_fewer_classes_is_not_taken(city, tmp_path):
    rows, labels, _, queries = city
    encoder, ids = build_encoder("tiny-resnet", "random", 32), [[20 * row, 0, 0] for row in range(41)]
    for count in (40, 41):  # the last class has no image
        cells = Cells(classifier_of(ids[:count], groups_per_side=1), encoder)
        opened = open_cell_index(rows, labels, cells, queries[:, :4], probes=count, folder=tmp_path / "indexes")
        neighbors, _ = opened.search(queries, 5)
        assert neighbors.rows.tolist() == nearest_neighbors(rows.parts(), queries, 5).rows.tolist()
    assert len(list((tmp_path / "indexes").glob("*.faiss"))) == 2
