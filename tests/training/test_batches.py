"""The batches of stage 2: what they hold, however they are read and by however many processes."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from contracts import assert_same_state, check_resume, training_builder
from PIL import ExifTags, Image
from running import parsed
from torchvision.transforms.v2 import functional as F

from progeo.commands.dataset_merge import merge_datasets
from progeo.config.datasets import MergeSettings
from progeo.data.augmentation import build_crop, color_plan, draw_changes
from progeo.data.decode import read_image
from progeo.data.options import Augmentation, DataOptions
from progeo.engine.accelerator import start_accelerator
from progeo.engine.randomness import seeded_generator
from progeo.engine.run_folder import RunFolder
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder
from progeo.models.options import HeadOptions
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.options import CellOptions
from progeo.training.batch_kinds import BATCHES, batch_kind
from progeo.training.batches import ClassBatches
from progeo.training.loss_terms import check_needs, default_losses
from progeo.training.options import MiningOptions, TextOptions, TrainingOptions

SHAPES = [(70, 90), (64, 64), (120, 50), (40, 200)]
SIZE = (32, 48)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Four cells with three photos each, of four shapes, and an index that names six places of two photos each."""
    folder = tmp_path_factory.mktemp("photos") / "train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for place in range(4):
        for photo in range(3):
            shape = (*SHAPES[(place + photo) % 4], 3)
            name = f"@{550000 + 10 * place + photo}@4180000@.png"
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    found = read_catalogue(folder)
    places = 2 * ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1"]
    named = found.table.append_column("place", pa.array(places))
    Catalogue(folder, named).save(folder.with_suffix(".arrow"))
    return read_catalogue(folder)


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("tiny-resnet", "random", SIZE, seed=0)


@pytest.fixture(params=BATCHES)
def kind(request):
    return request.param


CELLS = CellOptions(
    cell_side_m=10, heading_bin_deg=360, groups_per_side=1, groups_per_heading=1, min_images_per_class=1, num_groups=1
)
MINING = MiningOptions(positive_radius_m=2, exclusion_radius_m=5, negatives=3, pool=4, queries=12)
NO_TENSORS = {"pairs", "batch"}


def build(catalogue, kind="classes", *, process=0, num_processes=1, cache_images=False, batch_size=6, **data):
    row, data = BATCHES[kind].load(), DataOptions(train_folder=catalogue.folder, **data)
    training = TrainingOptions(
        batches=kind, batch_size=batch_size, iterations_per_epoch=5, cache_images=cache_images, generations=(16, 48)
    )
    how = {"data": data, "augmentation": Augmentation(), "training": training, "seed": 0, "options": MINING}

    def built(accelerator):
        return row(
            row.read(data, CELLS, MINING),
            encoder=build_encoder("tiny-resnet", "random", SIZE, seed=0),
            accelerator=accelerator,
            needs=("labels", "positions", "difficult_positives"),
            work=catalogue.folder.with_name("work"),
            **how,
        )

    if num_processes == 1:
        return built(start_accelerator("no"))
    batches = built(SimpleNamespace(process_index=process, num_processes=num_processes, device=torch.device("cpu")))
    if kind == "tuples":  # which a process alone cannot mine
        alone = built(start_accelerator("no"))
        next(alone.of_epoch(1, first_step=0))
        batches.load_state_dict(alone.state_dict())
    return batches


def draw(catalogue, kind="classes", *, epoch=1, first_step=0, **how):
    """Pixels, targets of single images such as labels, and shares of brightness of the batches of an epoch."""
    found = build(catalogue, kind, **how).of_epoch(epoch, first_step=first_step)
    words = ("labels", "positions", "rows")
    return [
        (batch.images, *(batch.targets[word] for word in words if word in batch.targets), batch.plan.angles)
        for (batch,) in found
    ]


def assert_same(one, two):
    assert len(one) == len(two)
    for mine, theirs in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("batch_size", [1, 6])
def test_batches_of_any_size_hold_images_and_the_targets_they_promise(kind, catalogue, batch_size):
    batches = build(catalogue, kind, num_workers=0, batch_size=batch_size)
    found = list(batches.of_epoch(0, first_step=0))
    assert len(found) == batches.steps_per_epoch <= 5
    given = batches.given(batches.training)
    promised = {need for need, advice in given.items() if not advice} - NO_TENSORS
    for (piece,) in found:
        count = len(piece.images)
        assert (piece.images.shape[1:], piece.images.dtype) == ((3, *SIZE), torch.uint8)
        assert len(piece.plan.order) == len(piece.targets["rows"]) == count
        assert promised <= piece.targets.keys() <= given.keys() | {"rows"}
        if "tuples" in given:
            tuples = piece.targets["tuples"]
            assert tuples.shape == (batch_size, 2 + MINING.negatives)
            assert set(tuples.flatten().tolist()) == set(range(count))
        else:
            assert count == batch_size
    assert "labels" not in given or all((piece.targets["labels"] >= 0).all() for (piece,) in found)
    assert batches.group_of(3) == 0


def test_their_state_returns_and_they_are_found_by_their_name(kind, catalogue):
    batches, again = build(catalogue, kind, num_workers=0), build(catalogue, kind)
    next(batches.of_epoch(0, first_step=0))
    again.load_state_dict(batches.state_dict())
    assert_same_state(again.state_dict(), batches.state_dict())
    assert batch_kind(TrainingOptions(batches=kind)) is BATCHES[kind]


def named(config, out):
    """The training images of a configuration, with their classes as places by name."""
    settings = parsed("train encoder", "--config", config)["settings"]
    merge_datasets((settings.data.train_folder,), out=out, settings=MergeSettings(cells=settings.cells))
    return out


def test_a_training_on_them_that_is_resumed_ends_with_the_same_bits(kind, config, tmp_path, request):
    settings = {"training.batches": kind, "text.weight": 0}
    if kind == "classes":
        settings["training.images_per_class"] = 2
    elif kind == "images":
        encoder = request.getfixturevalue("encoder")
        save_encoder(tmp_path / "teacher", encoder.eval(), provenance={}, recalls={})
        settings |= {"head.weight": 0, "cosine.weight": 1, "teacher.encoder": tmp_path / "teacher"}
    elif kind == "places":
        settings |= {"data.train_folder": named(config, tmp_path / "named"), "training.images_per_class": 2}
        settings["multi_similarity.weight"] = 1
    else:
        settings |= {"head.weight": 0, "tuples.weight": 1, "mining.negatives": 3, "training.batch_size": 4}
    settings["out"] = tmp_path / "run"
    check_resume(training_builder(config, settings), tmp_path)


def test_crops_are_cut_from_the_photos_own_pixels_and_resized_once(catalogue):
    augmentation, group = Augmentation(), build(catalogue).source.partition.groups[0]
    for step, (images, labels, positions, _, angles) in enumerate(draw(catalogue, num_workers=0)):
        changes = draw_changes(augmentation, 6, seeded_generator(0, 1, step))
        assert torch.equal(angles, color_plan(changes).angles)  # each step is jittered anew, too
        assert positions.dtype == torch.float32
        for image, label, position, drawn in zip(
            images, labels.tolist(), positions, changes.crops.numpy(), strict=True
        ):
            rows = group.rows[group.labels == label]
            photos = [read_image(catalogue.path(row)) for row in rows]
            boxes = [build_crop(augmentation, SIZE).box(drawn, *photo.shape[1:]) for photo in photos]
            crops = [
                F.resized_crop(photo, *box, size=list(SIZE), antialias=True)
                for photo, box in zip(photos, boxes, strict=True)
            ]
            (used,) = (row for row, crop in zip(rows, crops, strict=True) if torch.equal(image, crop))
            center = group.class_ids[label, :2] + 5
            assert position.tolist() == [catalogue.east[used] - center[0], catalogue.north[used] - center[1]]


def test_places_give_the_images_that_have_their_name_once_in_an_epoch(catalogue):
    batches = build(catalogue, "places", num_workers=0, batch_size=2)
    assert batches.steps_per_epoch == 3  # of two of six places each
    names, drawn = catalogue.places.to_pylist(), []
    for (piece,) in batches.of_epoch(0, first_step=0):
        for label, row in zip(piece.targets["labels"].tolist(), piece.targets["rows"].tolist(), strict=True):
            assert names[row] == batches.source.places.names[label].as_py()
            drawn.append(label)
        assert len(set(batches.source.places.regions[piece.targets["labels"]].tolist())) == 1
    assert sorted(drawn) == [0, 1, 2, 3, 4, 5]
    assert build(catalogue, "places", batch_size=1).steps_per_epoch == 5  # as many as are asked for
    with pytest.raises(ValueError, match=r"^`training.batch_size` 7 takes 7 places, and only 6 have enough images"):
        _ = build(catalogue, "places", batch_size=7).steps_per_epoch
    assert [line[12:] for line in batches.summary()] == [
        "12 of 12 are of places with enough images",
        "6 in 2 regions, one region after the other",
    ]


def test_what_places_by_name_cannot_give_is_refused():
    training = TrainingOptions(batches="places", batch_size=8, images_per_class=4)
    given = BATCHES["places"].load().given(training)
    assert (given["labels"], given["pairs"]) == ("", "")
    losses = {**default_losses(), "text": TextOptions(weight=1.0)}
    with pytest.raises(ValueError, match=r"`text.weight` above 0 needs text features .*places takes places by name"):
        check_needs(losses, {"descriptors": "", "text": "", **given})
    losses = {**default_losses(), "head": HeadOptions(smoothing_m=5.0), "text": TextOptions(weight=0.0)}
    with pytest.raises(ValueError, match=r"`head.smoothing_m` needs east and north .*: they are of cells"):
        check_needs(losses, {"descriptors": "", **given})


def test_a_run_on_places_resumes_with_the_same_places_only(config, tmp_path):
    folder = named(config, tmp_path / "named")
    settings = {"training.batches": "places", "data.train_folder": folder, "text.weight": 0}
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    training = training_builder(config, settings)()
    training.learned_from.keep(run)
    training.learned_from.check(run, ())
    assert training.classifier() is None
    assert training.terms.terms["head"].heads[0].head.weight.shape[0] == len(training.drawn.source.places)
    source = read_catalogue(folder)
    names = pc.replace_substring(source.table["place"], "cells", "other")
    changed = source.table.set_column(source.table.column_names.index("place"), "place", names)
    Catalogue(source.folder, changed).save(folder.with_suffix(".arrow"), {"root": str(source.folder)})
    with pytest.raises(ValueError, match=r"was begun with 8 places, now there are 8, not all the same or with other"):
        training_builder(config, settings)().learned_from.check(run, ())
    with pytest.raises(ValueError, match="classification needs the vectors that a classifier learns for cells"):
        training_builder(config, {**settings, "validation.kind": "classification"})


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(
    "how", [{"num_workers": 4}, pytest.param({"num_workers": 2, "cache_images": True}, marks=pytest.mark.slow)]
)
def test_batches_are_the_same_bits_with_any_number_of_workers_and_from_memory(kind, catalogue, how):
    assert_same(draw(catalogue, kind, **how), draw(catalogue, kind, num_workers=0))


@pytest.mark.parametrize("cache_images", [False, True])
@pytest.mark.parametrize("orientation", ["exif", "ignore"])
def test_photos_are_turned_before_they_are_cropped_only_where_asked(tmp_path, orientation, cache_images):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "@550000@4180000@.png", exif=exif)
    data = {"num_workers": 0, "orientation": orientation, "cache_images": cache_images}
    images, *_ = draw(read_catalogue(tmp_path), **data)[0]
    upright = np.rot90(pixels, -1) if orientation == "exif" else pixels
    photo, augmentation = torch.from_numpy(upright.copy()).permute(2, 0, 1), Augmentation()
    draws = draw_changes(augmentation, 6, seeded_generator(0, 1, 0)).crops.numpy()
    assert torch.equal(
        images,
        torch.stack([build_crop(augmentation, SIZE)(photo, drawn) for drawn in draws]),
    )


@pytest.mark.parametrize("cache_images", [False, True])
def test_photos_are_decoded_at_a_reduced_size_only_where_asked(tmp_path, cache_images):
    pixels = np.random.default_rng(0).integers(0, 256, (720, 720, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "@550000@4180000@.jpg")
    for fast_decode, shape in ((False, (3, 720, 720)), (True, (3, 90, 90))):
        batches = build(
            read_catalogue(tmp_path), "images", num_workers=0, fast_decode=fast_decode, cache_images=cache_images
        )
        assert batches.sets[0][0].shape == shape


def test_an_epoch_that_is_resumed_goes_on_with_the_same_bits(kind, catalogue):
    complete = draw(catalogue, kind, num_workers=0)
    assert_same(draw(catalogue, kind, num_workers=1, first_step=3), complete[3:])
    other = draw(catalogue, kind, num_workers=0, epoch=2)
    assert not torch.equal(other[0][0], complete[0][0])


def test_two_processes_read_the_halves_of_each_batch_of_one(kind, catalogue):
    one = draw(catalogue, kind, num_workers=0)
    halves = [draw(catalogue, kind, num_workers=0, process=process, num_processes=2) for process in (0, 1)]
    together = [tuple(torch.cat(parts) for parts in zip(*both, strict=True)) for both in zip(*halves, strict=True)]
    assert_same(together, one)


@pytest.mark.parametrize(
    ("training", "num_processes", "words"),
    [
        ({"batch_size": 5}, 2, "`training.batch_size` 5 must divide among 2 processes"),
        ({"batch_size": 12, "micro_batches": 4}, 2, "each part into `micro_batches` 4"),
        ({"batch_size": 32, "images_per_class": 5}, 1, "must be a multiple of `images_per_class` 5"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(training, num_processes, words):
    with pytest.raises(ValueError, match=words):
        ClassBatches.check(TrainingOptions(**training), num_processes)
