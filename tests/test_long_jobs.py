"""Long jobs show how far they are."""

import logging

import numpy as np
import pytest
from PIL import Image
from small_indexes import DIM, small_index

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import cache_images
from progeo.evaluation.clustering import cluster
from progeo.evaluation.missed import image_costs
from progeo.evaluation.pca import fit_pca
from progeo.evaluation.rerank import build_reranker
from progeo.evaluation.search import build_index
from progeo.export.weights import save_encoder
from progeo.features.store import ShardedRows
from progeo.localization.checking import check_place_index
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import read_catalogue


@pytest.fixture
def shown(monkeypatch):
    """The last numbers of each job, by what it does."""
    monkeypatch.setattr("progeo.progress.INTERVAL_S", 1e-9)
    found, logger = {}, logging.getLogger("progeo")
    handler = logging.Handler()
    handler.emit = lambda record: found.update(_numbers(getattr(record, "progress", None)))
    monkeypatch.setattr(logger, "handlers", [handler])
    level = logger.level
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)


def _numbers(progress):
    return {} if progress is None else {progress["doing"]: (progress["done"], progress["total"], progress["unit"])}


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)


@pytest.fixture
def stored(values, tmp_path):
    """The same in three files."""
    rows = ShardedRows(tmp_path / "rows", num_rows=60, width=8, shard_size=25, dtype="float32")
    for shard in rows.shards:
        rows.write_shard(shard, values[rows.shard_rows(shard).start : rows.shard_rows(shard).stop])
    return rows


def test_clustering_counts_the_rows_of_all_iterations(shown, values):
    cluster(values, 3)
    assert shown == {"clustering 3 lists": (600, 600, "rows")}


def test_an_index_counts_the_rows_that_are_added(shown, stored):
    build_index(stored, "Flat")
    assert shown == {"adding to the index": (60, 60, "rows")}


def test_re_ranking_counts_images_and_queries(shown, values):
    build_reranker(values[:20], values[20:], k1=5, k2=2, weight=0.3).nearest(3)
    assert shown == {
        "comparing pairs": (60, 60, "images"),
        "weighting neighbors": (60, 60, "images"),
        "re-ranking": (20, 20, "queries"),
    }


def test_the_search_for_correct_images_counts_those_of_the_database(shown, stored, values):
    assert sum(costs.shape[1] for costs in image_costs(stored, values[:2])()) == 60
    assert shown == {"ranking correct images": (60, 60, "images")}


def test_a_pca_counts_blocks(shown, values, monkeypatch):
    monkeypatch.setattr("progeo.evaluation.pca._BLOCK_VALUES", 160)
    fit_pca(values, 2, whiten=False)
    assert shown == {"multiplying descriptors": (3, 3, "blocks")}


def test_images_that_memory_keeps_are_counted_as_they_are_decoded(shown, tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"@0@{number}@10@S@.png")
    cache_images(CatalogueImages(read_catalogue(tmp_path)), num_workers=0)
    assert shown["reading image sizes"] == shown["decoding images"] == (3, 3, "images")


def test_a_place_index_counts_the_rows_that_are_written_and_checked(shown, tmp_path):
    encoder = build_encoder("tiny-resnet", "random", 48, descriptor_dim=DIM)
    save_encoder(tmp_path / "encoder", encoder, provenance={}, recalls={})
    folder = small_index(tmp_path / "index", tmp_path / "encoder", tmp_path, count=5, part_rows=2)
    assert shown == {"writing the index": (5, 5, "rows")}
    check_place_index(folder)
    assert shown[f"reading {folder}"] == (9, 9, "files")
    assert shown["checking rows"] == (5, 5, "rows")
