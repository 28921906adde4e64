"""For any bytes in place of our own files, reading gives a value or a sentence that names the file."""

import json
import zlib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from classifiers import classifier_of
from fuzz.damaged import Reader, failures
from fuzz.mutations import mutations
from running import build_catalogue
from safetensors.torch import save_file
from small_onnx import colors
from torch import nn

from progeo.engine.accelerator import start_accelerator
from progeo.engine.run_folder import RunFolder, check_run, open_run
from progeo.export.card import starting_weights
from progeo.export.classifier import load_classifier, write_classifier
from progeo.export.weights import load_encoder, read_encoder_metadata, save_encoder
from progeo.features import calibration
from progeo.features.cache import Cache, prepared_folder
from progeo.features.descriptors import descriptor_metadata
from progeo.features.store import ShardedRows
from progeo.features.unreadable import read_reasons, write_reasons
from progeo.localization.building import rows_in_cell_order, write_index
from progeo.localization.confidence import Calibration, Verification, VerifiedCalibration
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.part_files import open_images
from progeo.localization.path_table import open_path_table
from progeo.localization.place_index import located_images, open_place_index
from progeo.models.aggregation.centroids import read_centroids, write_centroids
from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.batch_norm import running_statistics, set_running_statistics
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import build_partition
from progeo.runs.curves import charts_of
from progeo.runs.reading import Stage
from progeo.runs.summary import summarize
from progeo.training.options import TrainerOptions
from progeo.training.places import LearnedFrom, TrainingPlaces
from progeo.training.prompt_files import load_clip_of_prompts, load_text_features, read_group
from progeo.training.task import Task
from progeo.training.trainer import Trainer, check_checkpoints
from progeo.verification.feature_file import to_store
from progeo.verification.local_features import extract_local_features

NAMES = [
    f"@{500000 + 7 * row}.5@{4100000 + 3 * row}.5@10@S@@@pano{row}@@{row * 30 % 360}@@@@@@.jpg" for row in range(8)
]


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """Have open_clip know a network of 3,000 weights."""
    known = open_clip.factory._MODEL_CONFIGS
    known["micro-vit"] = json.loads((Path(__file__).parents[1] / "export/format_2/micro-vit.json").read_text())
    yield
    del known["micro-vit"]


@cache
def encoder():
    return build_encoder("micro-vit", "random", 32, aggregation="gem").eval()


@cache
def image_tower():
    return load_clip("tiny-resnet", "random").visual


@cache
def catalogue(folder):
    return build_catalogue(folder / "images", NAMES)


@cache
def partition(folder):
    cells = {"cell_side_m": 20, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1}
    return build_partition(catalogue(folder), **cells, min_images_per_class=2, num_groups=2)


def encoder_folder(folder):
    provenance = {"epoch": 3, "settings": {"cells": {"cell_side_m": 20}, "model": {"weights": "random"}}}
    save_encoder(folder, encoder(), provenance=provenance, recalls={"val R@1": 91.5})
    return folder / "model.json"


def read_encoder(path):
    load_encoder(path.parent)
    assert isinstance(starting_weights(read_encoder_metadata(path.parent)), str | None)


def onnx_file(folder):
    (folder / "model.onnx").write_bytes(colors("pixels").SerializeToString())
    return folder / "model.onnx"


def classifier(folder):
    write_classifier(classifier_of([(0, 0, 0), (20, 0, 0), (40, 40, 0)]), folder / "classifier.safetensors")
    return folder / "classifier.safetensors"


def batch_norm(folder):
    path = folder / "batch_norm.safetensors"
    save_file(running_statistics(image_tower()), path)
    return path


def read_batch_norm(path):
    statistics = calibration._read_statistics(path, image_tower())
    set_running_statistics(image_tower(), statistics)


def prompts(folder):
    groups = partition(folder).groups
    tensors = {f"group_{index}.text_features": torch.ones(group.num_classes, 4) for index, group in enumerate(groups)}
    save_file(tensors, folder / "prompts.safetensors")
    described = {"partition": partition(folder).describe(), "architecture": "RN50", "weights": "openai", "seed": 1}
    described |= {
        "configuration": named_configuration("RN50").to_json(),
        "vocabulary": "1234",
        "template": "A {}",
        "context_length": 4,
        "groups": [{"classes": 3}],
    }
    (folder / "prompts.json").write_text(json.dumps(described))
    return folder / "prompts.json"


def read_prompts(path):
    if path.name == "prompts.json":
        clip = load_clip_of_prompts(path.parent)
        assert all(isinstance(part, str) for part in (clip.architecture, clip.weights, clip.configuration.fingerprint))
    load_text_features(path.parent, partition(path.parent))


def group(folder):
    names = ("classes", "classes_without_images", "images", "loss", "image_to_text_accuracy", "text_to_image_accuracy")
    tensors = {"context": torch.ones(3, 2, 4), "text_features": torch.ones(3, 4)}
    save_file(tensors, folder / "group_0.safetensors", {"summary": json.dumps(dict.fromkeys(names, 1))})
    return folder / "group_0.safetensors"


class Toy(Task):
    steps_per_epoch, images_per_step = 2, 4

    def __init__(self, accelerator):
        self.model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
        groups = [{"params": list(self.model.parameters()), "lr": 0.1, "base_lr": 0.1}]
        self.optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups))

    def name(self, epoch):
        return f"toy {epoch}"

    def batches(self, epoch, *, first_step):
        return [[torch.arange(8.0).view(4, 2)] for _ in range(first_step, 2)]

    def losses(self, piece):
        return {"squares": self.model(piece).pow(2).mean()}

    def begin(self):
        pass

    def validate(self, model):
        return None

    def keep(self, folder, model, *, epoch, values, terms):
        pass

    def state_dict(self):
        return self.model.state_dict()

    def load_state_dict(self, state):
        self.model.load_state_dict(state)


def trainer(folder):
    run, accelerator = RunFolder(folder), start_accelerator("no")
    options = TrainerOptions(epochs=9, checkpoint_every=1, ema_decay=0.5, keep_checkpoints=1)
    return Trainer(Toy(accelerator), options, run, checkpoints=run.checkpoints, seed=1, accelerator=accelerator)


def checkpoint(folder):
    training = trainer(folder)
    training.resume()
    next(training.epochs())
    (path,) = folder.glob("checkpoints/*/state.json")
    return path


def read_checkpoint(path):
    folder = path.parents[2]
    check_checkpoints(RunFolder(folder))
    training = trainer(folder)
    training.resume()
    training.state_dict(), training.finished, training._compare_loss(1.0)


def places(folder):
    learned = LearnedFrom(TrainingPlaces(catalogue(folder), partition(folder)), [catalogue(folder)], [torch.ones(3, 4)])
    learned.keep(RunFolder(folder))
    return folder / "places.json"


def read_places(path):
    folder = path.parent
    learned = LearnedFrom(TrainingPlaces(catalogue(folder), partition(folder)), [catalogue(folder)], [torch.ones(3, 4)])
    learned.check(RunFolder(folder), ["data.train_folder"])


SETTINGS = {"out": "run", "data": {"train_folder": "x", "num_workers": 0}, "model": {"mean": None, "cells": [1, 2.5]}}


def run_folder(folder):
    open_run(RunFolder(folder), SETTINGS)
    (folder / "checkpoints/epoch_000001_step_000000").mkdir(parents=True)
    return folder / "config.yaml"


def metrics(folder):
    run = RunFolder(folder)
    for epoch in range(3):
        run.append_metrics({"group": 0, "epoch": epoch, "loss": 1.5})
        run.append_metrics({"group": 0, "epoch": epoch + 1, "step": 7, "steps_per_epoch": 9, "seconds": 0.5})
    return run.metrics


def read_metrics(path):
    run = RunFolder(path.parent)
    run.keep_metrics(lambda row: row["epoch"] <= 1)
    assert all(row["epoch"] <= 1 for row in run.read_metrics())
    stage = Stage("a", run, {"prompts.epochs": 3}, run.read_metrics())
    summarize(stage)
    charts_of([stage])


def place_index(folder, kind="IVF3,Flat"):
    save_encoder(folder / "model", encoder(), provenance={}, recalls={})
    images = located_images(catalogue(folder))
    rows = descriptors(folder / "scratch", width=encoder().descriptor_dim)
    calibrated = Calibration(25.0, (0.5, 0.1), (0.2, 0.1), (1.0, 2.0, 3.0), 30, 20, 0.05)
    verified = VerifiedCalibration(25.0, (0.5, 0.1, 2.0), (0.2, 0.1, 1.0), (1.0, 2.0, 3.0, 4.0), 30, 25, 0.05)
    pixels = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = to_store(extract_local_features(pixels).to_bytes())
    metadata = IndexMetadata(
        kind=kind,
        probes=2,
        encoder=descriptor_metadata(encoder()),
        image_size=(32, 32),
        database_preprocessing="hard_resize",
        query_preprocessing="hard_resize",
        calibration=calibrated,
        verification=Verification("sift", 20, 0.5, verified),
        stores_features=True,
        parts=(),
    )
    stored = [features, to_store(None), *[features] * (len(images) - 2)]
    new = replace(rows_in_cell_order(images, rows), features=lambda first, last: stored[first:last])
    assert write_index(folder, metadata, new)
    return folder / "index.json"


def file_of(build, pattern, folder, *, digests=None):
    """Build files that belong together and return one; without digests they are those of an earlier version."""
    described = build(folder)
    if digests is not None:
        values = json.loads(described.read_text())
        del values[digests]
        described.write_text(json.dumps(values))
    return next(described.parent.glob(pattern))


def read_index(path):
    index = open_place_index(path.parent)
    neighbors = index.search(np.zeros((2, index.encoder.descriptor_dim), np.float32))
    index.confidences(neighbors)
    _ = index.verifier.top, index.metadata.verification and index.metadata.verification.below
    [index.features.features(row) for row in range(8) if index.features is not None]
    index.catalogue.take(np.maximum(neighbors.rows[0], 0)).table.to_pylist()


def read_catalogue_of_index(path):
    open_images(path, path.parent).table.to_pylist()


def scanned(folder):
    table = catalogue(folder).table
    columns = {"positives": [[row] for row in range(8)], "condition": ["day"] * 7 + [None]}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    metadata = {"seen": {}, "list": None, "rules": 2, "root": ""}
    type(catalogue(folder))(folder / "images", table).save(folder / "images.arrow", metadata)
    return folder / "images.arrow"


def read_scanned(path):
    found = read_catalogue(path.parent / "images")
    for what in ("east", "heading", "degrees", "positives", "conditions", "fingerprint"):
        getattr(found, what)
    found.places_fingerprint, found.name(len(found) - 1), found.take(np.arange(len(found)))


DEPENDS_ON = {"encoder": {"weights": "1234"}, "image_size": [32, 32], "num_images": 8}


def prepare(folder):
    return prepared_folder(Cache(folder, "float16", "feature_cache"), DEPENDS_ON, catalogue(folder), 8)


def cached(name, folder):
    (folder / "images").mkdir()
    (folder / "images" / NAMES[0]).write_bytes(b"no image, but there")
    return prepare(folder) / name


def read_cached(path):
    prepare(path.parents[1])


def descriptors(folder, width=4):
    rows = ShardedRows(folder, num_rows=8, width=width, shard_size=8, dtype="float32")
    rows.write_shard(0, np.random.default_rng(0).standard_normal((8, width), np.float32))
    return rows


def rows_file(folder):
    return descriptors(folder).folder / "rows_00000.npy"


def read_rows(path):
    rows = ShardedRows(path.parent, num_rows=8, width=4, shard_size=8, dtype="float32")
    rows.take(np.arange(8)), list(rows.parts())


def reasons(folder):
    write_reasons(descriptors(folder), 0, {3: "it is corrupt", 5: "it is no image"}, catalogue(folder))
    return folder / "unreadable_00000.json"


def read_reasons_file(path):
    rows = ShardedRows(path.parent, num_rows=8, width=4, shard_size=8, dtype="float32")
    found = read_reasons(rows, catalogue(path.parent))
    assert all(0 <= row < 8 and isinstance(reason, str) for row, reason in found.items())


def centroids(folder):
    values = np.eye(8, 4, dtype=np.float32)
    write_centroids(folder / "centroids.hdf5", values[:3], values)
    return folder / "centroids.hdf5"


READERS = {
    "model.json": Reader(encoder_folder, read_encoder, lambda path: "/model."),
    "model.safetensors": Reader(partial(file_of, encoder_folder, "model.safetensors"), read_encoder),
    "model.safetensors, no digest": Reader(
        partial(file_of, encoder_folder, "model.safetensors", digests="files"), read_encoder
    ),
    "model.onnx": Reader(onnx_file, lambda path: load_encoder(f"onnx:{path}")),
    "classifier.safetensors": Reader(classifier, lambda path: load_classifier(path.parent)),
    "batch_norm.safetensors": Reader(batch_norm, read_batch_norm),
    "prompts.json": Reader(prompts, read_prompts, lambda path: "/prompts."),
    "prompts.safetensors": Reader(lambda folder: prompts(folder).with_suffix(".safetensors"), read_prompts),
    **{
        f"{name}{', no digest' if digests else ''}": Reader(
            partial(file_of, checkpoint, name, digests=digests), read_checkpoint, lambda path: path.parent.name
        )
        for name in ("state.json", "tensors.safetensors")
        for digests in (None, "digests")
    },
    "group_0.safetensors": Reader(group, lambda path: read_group(path, ["context", "text_features"])),
    "places.json": Reader(places, read_places, lambda path: str(path.parent)),
    "config.yaml": Reader(run_folder, lambda path: check_run(RunFolder(path.parent), SETTINGS, resume=True)),
    "metrics.jsonl": Reader(metrics, read_metrics),
    "index.json": Reader(place_index, read_index, lambda path: str(path.parent)),
    **{
        f"place index, {name}": Reader(
            partial(file_of, place_index, f"part_00000/{name}"), lambda path: read_index(path.parent)
        )
        for name in ("catalogue.arrow", "descriptors.npy", "places.faiss", "features.arrow")
    },
    "place index, trained": Reader(partial(file_of, place_index, "trained_*.faiss"), read_index),
    "place index, catalogue, no digest": Reader(
        partial(file_of, place_index, "part_00000/catalogue.arrow"), read_catalogue_of_index
    ),
    "place index, paths.npy, no digest": Reader(
        partial(file_of, place_index, "part_00000/paths.npy"), lambda path: open_path_table(path, len(NAMES))
    ),
    "images.arrow": Reader(scanned, read_scanned),
    "description.json": Reader(partial(cached, "description.json"), read_cached, lambda path: path.parent.name),
    "files.npy": Reader(partial(cached, "files.npy"), read_cached),
    "rows.npy": Reader(rows_file, read_rows),
    "unreadable.json": Reader(reasons, read_reasons_file),
    "centroids.hdf5": Reader(centroids, read_centroids),
}


@pytest.mark.parametrize("count", [8, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", READERS)
def test_any_bytes_give_a_value_or_a_sentence_that_names_the_file(kind, count, tmp_path):
    reader = READERS[kind]
    path = reader.build(tmp_path)
    content = path.read_bytes()
    reader.read(path)
    found = failures(reader, path, [content, None, *mutations(content, zlib.crc32(kind.encode()), count)])
    assert not found, f"{len(found)} of {count}:\n\n" + "\n\n".join(found[:5])
