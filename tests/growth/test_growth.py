"""Every stage costs no more than in proportion to images, classes and queries: counted at 1, 4 and 16 times as many.

A constant cost, such as that of a start, cancels in the differences between sizes; of a cost in proportion the second
difference is 4 times the first, of a quadratic one 16 times.
"""

from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from growth.costs import Costs, costs_of
from PIL import Image
from running import build_catalogue, parsed

from progeo.cli import COMMANDS
from progeo.commands.train_encoder import build_training, read_training_images
from progeo.engine.accelerator import start_accelerator
from progeo.engine.loop import take_steps
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import StopRequest
from progeo.evaluation.metrics import recall_table
from progeo.evaluation.search import nearest_neighbors
from progeo.export.weights import save_encoder
from progeo.features.store import ShardedRows
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder
from progeo.models.text_towers.tower import build_text_tower
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import build_partition
from progeo.places.positives import positives_within
from progeo.training.options import PromptOptions
from progeo.training.prompt_group import GroupImages, GroupTraining
from progeo.training.trainer import Trainer

SIDE = 32
FACTOR = 4
WORK = {"num_workers": 0, "batch_size": 6}
OVER = 0.15
"""Share that a cost may grow faster than in proportion."""
ROUNDING = 0.0005
"""Share of a cost by which it may differ besides, as messages have more digits."""


def check_growth(run, sizes):
    """Check the costs of `run(size)()`, which may prepare what is not counted."""
    run(sizes[0])()  # what is imported and cached the first time is not counted
    costs = [costs_of(run(size)) for size in sizes]
    for name, first, second, third in zip(Costs._fields, *costs, strict=True):
        most = FACTOR * (1 + OVER) * max(0, second - first) + ROUNDING * third
        assert third - second <= most, f"{name}: {first}, {second}, {third} at {sizes}"


def thrice(size):
    return size, FACTOR * size, FACTOR**2 * size


def write_photos(folder, number):
    """Photos of random pixels, 100 m apart, so that each is of a class of its own."""
    if not folder.exists():
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (number, SIDE, SIDE, 3), dtype=np.uint8)
        for row, each in enumerate(pixels):
            Image.fromarray(each).save(folder / f"@{550_000 + 100 * row}@4180000@10@S@@@@@@@@@@@@.jpg")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", SIDE).eval(), provenance={}, recalls={})


@pytest.fixture(params=[6, pytest.param(60, marks=pytest.mark.slow)])
def few(request):
    """The smallest number of images."""
    return request.param


def test_a_catalogue_is_read_in_proportion_to_its_images(tmp_path):
    def run(number):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        for row in range(number):
            (folder / f"@{550_000 + row}@4180000@10@S@@@@@@@@@@@@.jpg").touch()
        return lambda: read_catalogue(folder)

    check_growth(run, thrice(64))


@pytest.mark.parametrize("per_class", [1, 50])
def test_classes_are_found_in_proportion_to_images(per_class):
    def run(number):
        names = [f"@{10 * (row // per_class)}@0@10@S@@@{row}@@0@@@@@@.jpg" for row in range(number)]
        catalogue = build_catalogue(Path("images"), names)
        settings = {"cell_side_m": 10, "heading_bin_deg": 30, "groups_per_side": 5, "groups_per_heading": 2}

        def classes():
            partition = build_partition(catalogue, **settings, min_images_per_class=1, num_groups=5)
            assert partition.fingerprint
            assert all(len(group.labels) for group in partition.groups)

        return classes

    check_growth(run, thrice(500))


@pytest.fixture(scope="module")
def group_training(tmp_path_factory):
    clip = load_clip("tiny-vit", "random").requires_grad_(False)
    folder, tower, accelerator = tmp_path_factory.mktemp("features"), build_text_tower(clip), start_accelerator("no")

    def build(num_images, num_classes, **options):
        values = np.random.default_rng(0).normal(size=(num_images, clip.text_projection.shape[1]))
        features = ShardedRows(folder / f"{num_images}", num_rows=num_images, width=values.shape[1], shard_size=512)
        for shard in features.missing_shards():
            features.write_shard(shard, values[features.shard_rows(shard)].astype(np.float16))
        rows = np.arange(num_images)
        images = GroupImages(features, rows, labels=rows % num_classes, accelerator=accelerator, on_device=True)
        prompts = PromptOptions(batch_size=16, **options)
        return GroupTraining(
            0, num_classes, images=images, tower=tower, prompts=prompts, seed=0, accelerator=accelerator
        )

    return build


def test_a_step_of_stage_1_costs_in_proportion_to_the_classes_of_its_group(group_training):
    def run(num_classes):
        def steps():
            training = group_training(1024, num_classes)
            batches = training.batches(0, first_step=0)[:2]
            assert len(list(take_steps(batches, training.losses, training.optimizer, training.accelerator))) == 2

        return steps

    check_growth(run, thrice(64))


def test_an_epoch_of_stage_1_costs_in_proportion_to_the_images_of_its_group(group_training):
    def run(num_images):
        training = group_training(num_images, 8, patience=3)

        def epoch():
            list(
                take_steps(training.batches(0, first_step=0), training.losses, training.optimizer, training.accelerator)
            )
            assert training.validate(training.learner).values

        return epoch

    check_growth(run, thrice(16))


def build_command(name, *words, **settings):
    """A command with its settings, which are parsed before anything is counted."""
    flags = [part for setting, value in settings.items() for part in (f"--{setting}", value)]
    return partial(COMMANDS[name].load(), **parsed(name, *words, *flags))


def test_stage_2_costs_in_proportion_to_images_and_classes(few, tmp_path):
    settings = {
        "out": tmp_path / "run",
        "data.num_workers": 0,
        "validation.kind": "none",
        "model.architecture": "tiny-resnet",
        "model.weights": "random",
        "encoder.image_size": SIDE,
        "encoder.descriptor_dim": 8,
        "text.weight": 0,
        "cells.min_images_per_class": 1,
        "cells.num_groups": 1,
        "training.keep": "last",
        "training.iterations_per_epoch": 2,
        "training.batch_size": 4,
    }

    def run(number):
        images = write_photos(tmp_path / f"{number}", number)
        flags = [f"--{name}={value}" for name, value in {**settings, "data.train_folder": images}.items()]
        stage_2 = parsed("train encoder", *flags)["settings"]

        def epoch():
            accelerator, run = start_accelerator("no"), RunFolder(stage_2.out)
            training = build_training(stage_2, read_training_images(stage_2), accelerator)
            trainer = Trainer(
                training, stage_2.training, run, checkpoints=run.checkpoints, seed=0, accelerator=accelerator
            )
            trainer.resume()
            assert trainer.train_epoch(StopRequest())["loss"] > 0
            assert len(training.classifier()) == number

        return epoch

    check_growth(run, thrice(4 * few))


@pytest.mark.parametrize("grows", ["database", "queries"])
def test_search_and_recall_cost_in_proportion_to_database_and_queries(grows):
    rng = np.random.default_rng(0)

    def run(number):
        sizes = {"database": 500, "queries": 50, grows: number}
        database, queries = (rng.random((size, 16), np.float32) for size in sizes.values())
        database_m, queries_m = (np.arange(2.0 * size).reshape(-1, 2) for size in sizes.values())

        def recalls():
            positives = positives_within(database_m, queries_m, 25.0)
            found = nearest_neighbors(np.array_split(database, len(database) // 100), queries, 5)
            return recall_table(found.rows, {"25 m": positives}, {"all": np.arange(len(queries))}, (1, 5))

        return recalls

    check_growth(run, thrice(500))


@pytest.mark.slow
@pytest.mark.parametrize("grows", ["database", "queries"])
def test_an_evaluation_costs_in_proportion_to_database_and_queries(grows, few, encoder, tmp_path):
    outs = (tmp_path / f"results{number}" for number in count())

    def run(number):
        folder, out = tmp_path / f"{number}", next(outs)
        for part in ("database", "queries"):
            write_photos(folder / part, number if part == grows else few)
        return build_command("evaluate", encoder, folder=folder, out=out, descriptor_cache=out / "cache", **WORK)

    check_growth(run, thrice(few))


@pytest.mark.parametrize("grows", ["images", pytest.param("photos", marks=pytest.mark.slow)])
def test_a_place_index_costs_in_proportion_to_its_images_and_to_photos(grows, few, encoder, tmp_path):
    """Every photo is compared with every image, so that both together cost more."""
    outs = (tmp_path / f"index{number}" for number in count())

    def run(number):
        counts, out = {"images": few, "photos": few, grows: number}, next(outs)
        images, photos = (write_photos(tmp_path / f"{name}{number}", size) for name, size in counts.items())
        build = build_command(
            "index build", encoder, folder=images, out=out, descriptor_cache=tmp_path / f"cache_of_{out.name}", **WORK
        )
        localize = build_command("localize", photos, index=out, out=tmp_path / f"{out.name}.csv", **WORK)
        return lambda: (build(), localize())

    check_growth(run, thrice(few))
