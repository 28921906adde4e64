from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of

from progeo.evaluation.classification import ClassScores, class_costs, rank_classes
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.evaluation.missed import best_correct, image_costs, missed_classes, missed_images
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import nearest_neighbors
from progeo.features.store import ShardedRows
from progeo.places.catalogue import Catalogue


def in_blocks(costs, width):
    return lambda: (costs[:, start : start + width] for start in range(0, costs.shape[1], width))


def sorted_positives(rng, num_queries, num_candidates):
    counts = rng.integers(0, 6, num_queries)
    return [np.sort(rng.choice(num_candidates, count, replace=False)) for count in counts]


@pytest.mark.parametrize("width", [1, 7, 60])
def test_the_best_positive_and_its_rank_are_those_of_a_full_ranking_with_ties(width):
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 8, (30, 60)).astype(np.float32)  # many ties, which are ordered by row
    positives = sorted_positives(rng, 30, 60)
    found = best_correct(in_blocks(costs, width), positives)
    for query, rows in enumerate(positives):
        ranking = np.argsort(costs[query], kind="stable").tolist()
        ranks = {ranking.index(row) + 1: row for row in rows.tolist()}
        if ranks:
            expected = (ranks[min(ranks)], costs[query, ranks[min(ranks)]], min(ranks))
            assert (found.rows[query], found.costs[query], found.ranks[query]) == expected
        else:
            assert (found.rows[query], found.costs[query]) == (-1, np.inf)
    assert not all(map(len, positives))


def test_panoramas_count_once_by_their_best_view():
    rng = np.random.default_rng(1)
    costs = rng.permuted(np.tile(np.arange(60, dtype=np.float32), (30, 1)), axis=1)
    panoramas = np.array([f"p{number}" for number in rng.integers(0, 12, 60)])
    positives = [np.flatnonzero(panoramas == f"p{query % 12}") for query in range(30)]
    found = best_correct(in_blocks(costs, 7), positives, panoramas=panoramas)
    ranking = np.argsort(costs, axis=1, kind="stable")
    first_views = first_of_each_panorama(ranking, panoramas, 12)
    expected = [row.tolist().index(best) + 1 for row, best in zip(first_views, found.rows.tolist(), strict=True)]
    assert found.ranks.tolist() == expected
    assert max(expected) > 3


def test_another_view_of_the_panorama_of_a_positive_is_not_before_it():
    costs = np.array([[1, 2, 3]], np.float32)
    found = best_correct(in_blocks(costs, 3), [np.array([1])], panoramas=np.array(["a", "a", "b"]))
    assert (found.rows.tolist(), found.ranks.tolist()) == ([1], [1])


def stored(folder, values, missing=()):
    rows = ShardedRows(folder, num_rows=len(values), width=values.shape[1], shard_size=10, dtype="float32")
    for shard in rows.shards:
        rows.write_shard(shard, values[rows.shard_rows(shard)].astype(np.float32))
    return rows.without(np.array(missing, np.int64))


def images(count):
    names = pa.array([f"{row}.jpg" for row in range(count)], pa.large_string())
    columns = {name: np.zeros(count) for name in ("east", "north", "heading")}
    return Catalogue(Path(), pa.table({"path": names, **columns, "zone": np.zeros(count, np.int8)}))


def retrieved(predictions, positives, num_database, **values):
    conditions = np.full(len(predictions), "")
    queries = images(len(predictions))
    return Retrieved(images(num_database), queries, predictions, {"within 25 m": positives}, conditions, **values)


@pytest.mark.parametrize("by_descriptors", [True, False])
def test_the_nearest_correct_image_of_failed_queries_is_ranked_among_all_readable_images(tmp_path, by_descriptors):
    rng = np.random.default_rng(2)
    database, queries = rng.normal(size=(35, 4)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    missing = [3, 8, 21]
    store = stored(tmp_path, database, missing)
    predictions = store.all_rows(nearest_neighbors(store.parts(), queries, 4).rows)
    positives = [np.sort(rng.choice(35, 4, replace=False)) for _ in range(20)]
    positives[5] = np.array(missing)
    found = retrieved(predictions, positives, 35)
    missed = missed_images(found, np.arange(20), store, queries, by_descriptors=by_descriptors)
    expected = {}
    for query, rows in enumerate(positives):
        distances = np.linalg.norm(database - queries[query], axis=1)
        ranking = [row for row in np.argsort(distances).tolist() if row not in missing]
        ranks = [(ranking.index(row) + 1, row, distances[row]) for row in rows.tolist() if row not in missing]
        if ranks and min(ranks)[0] > 1:
            expected[query] = min(ranks)
    assert missed.queries.tolist() == list(expected)
    assert missed.ranks.tolist() == [rank for rank, _, _ in expected.values()]
    assert missed.rows.tolist() == [row for _, row, _ in expected.values()]
    np.testing.assert_allclose(missed.values, [distance for _, _, distance in expected.values()], rtol=1e-5)
    assert 1 < min(missed.ranks) <= 4 < max(missed.ranks)


def test_only_the_queries_asked_for_are_looked_at(tmp_path):
    store = stored(tmp_path, np.arange(4, dtype=float)[:, None])
    found = retrieved(np.array([[0], [0], [0]]), [np.array([2]), np.array([0]), np.array([3])], 4)
    missed = missed_images(found, np.array([2, 1]), store, np.zeros((3, 1), np.float32), by_descriptors=True)
    assert (missed.queries.tolist(), missed.rows.tolist(), missed.ranks.tolist()) == ([2], [3], [4])
    assert missed.values.tolist() == [3]


def test_panoramas_are_those_of_the_readable_images(tmp_path):
    store, panoramas = stored(tmp_path, np.arange(4.0)[:, None], [1]), np.array(["a", "b", "b", "c"])
    found = retrieved(np.array([[0]]), [np.array([3])], 4, panoramas=panoramas)
    missed = missed_images(found, np.array([0]), store, np.zeros((1, 1), np.float32), by_descriptors=True)
    assert (missed.rows.tolist(), missed.ranks.tolist()) == ([3], [3])


def test_nothing_is_missed_if_all_are_correct_or_have_no_positive(tmp_path):
    store, queries = stored(tmp_path, np.eye(4)), np.eye(4, dtype=np.float32)[:2]
    found = retrieved(np.array([[0], [1]]), [np.array([0]), np.array([], np.int64)], 4)
    assert len(missed_images(found, np.arange(2), store, queries, by_descriptors=True).rows) == 0
    scores = ClassScores(classifier_of([(0, 0, 0), (20, 0, 0)]), found.predictions, np.ones((2, 1)), "softmax")
    assert len(missed_classes(found, np.arange(2), scores, queries, by_descriptors=True).rows) == 0


def test_equal_distances_are_ranked_as_they_were_predicted(tmp_path):
    store = stored(tmp_path, np.ones((6, 2)))
    predictions = np.array([[5, 4, 3], [5, 4, 3]])  # as another order of summation, or a GPU, may find them
    found = retrieved(predictions, [np.array([0, 4]), np.array([0])], 6)
    queries = np.zeros((2, 2), np.float32)
    missed = missed_images(found, np.arange(2), store, queries, by_descriptors=True)
    assert (missed.rows.tolist(), missed.ranks.tolist()) == ([4, 0], [2, 4])
    reranked = missed_images(found, np.arange(2), store, queries, by_descriptors=False)
    assert (reranked.rows.tolist(), reranked.ranks.tolist()) == ([0, 0], [1, 1])


def test_the_nearest_crop_counts(tmp_path):
    store = stored(tmp_path, np.array([[0.0, 0], [4, 0], [10, 0]]))
    crops = np.array([[9, 0, 4.5, 0]], np.float32)  # two crops of one query: 9, 0.5 of image 1, 1 of image 2
    found = retrieved(np.array([[1]]), [np.array([0, 2])], 3)
    missed = missed_images(found, np.array([0]), store, crops, by_descriptors=True)
    assert (missed.rows.tolist(), missed.ranks.tolist(), missed.values.tolist()) == ([2], [2], [1])


def test_costs_of_images_are_squared_distances_in_blocks(tmp_path):
    rng = np.random.default_rng(3)
    database, queries = rng.normal(size=(25, 3)), rng.normal(size=(4, 6)).astype(np.float32)
    found = np.concatenate(list(image_costs(stored(tmp_path, database), queries)()), axis=1)
    crops = queries.reshape(4, 2, 1, 3)
    np.testing.assert_allclose(found, ((crops - database) ** 2).sum(axis=3).min(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("raw_scores", [False, True])
def test_the_best_class_with_a_correct_center_is_ranked_by_its_score(raw_scores):
    rng = np.random.default_rng(4)
    classifier = classifier_of([(20 * number, 0, 0) for number in range(30)], kind="linear")
    descriptors = rng.normal(size=(12, 4)).astype(np.float32)
    ranked = rank_classes(descriptors, classifier.weight, bias=classifier.bias, normalize=not raw_scores, count=30).rows
    positives = [np.sort(rng.choice(30, 2, replace=False)) for _ in range(12)]
    scores = ClassScores(classifier, ranked[:, :5], np.zeros((12, 5)), "softmax", scale=2.0, raw_scores=raw_scores)
    found = retrieved(ranked[:, :5], positives, 30, classes=scores)
    missed = missed_classes(found, np.arange(12), scores, descriptors, by_descriptors=False)
    ranks = [min(row.tolist().index(each) + 1 for each in rows) for row, rows in zip(ranked, positives, strict=True)]
    assert missed.queries.tolist() == [query for query, rank in enumerate(ranks) if rank > 1]
    assert missed.ranks.tolist() == [rank for rank in ranks if rank > 1]
    unit = classifier.weight / np.linalg.norm(classifier.weight, axis=1, keepdims=True)
    cosines = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True) @ unit.T
    probabilities = np.exp(2 * cosines) / np.exp(2 * cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(missed.values, probabilities[missed.queries, missed.rows], rtol=1e-4)


def test_the_best_of_several_crops_is_the_score_of_a_class():
    crops = np.array([[[1.0, 0], [0, 2]]], np.float32)
    costs = class_costs(crops, np.array([[3.0, 1], [1, 1]], np.float32), bias=np.array([0, 5.0], np.float32))
    assert np.concatenate(list(costs()), axis=1).tolist() == [[-3, -7]]  # max(3, 2), and max(1, 2) + 5
