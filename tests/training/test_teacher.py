"""What a teacher gives: descriptors and maps of its own size and pixels, in every step or from a cache."""

import json
import shutil

import numpy as np
import pytest
import torch
from contracts import assert_same_state, trainer_of, training_builder
from running import files_in, metrics_of

from progeo.cli import main
from progeo.data.augmentation import jitter_colors
from progeo.data.decode import read_image
from progeo.engine.stopping import StopRequest
from progeo.export.weights import load_encoder, save_encoder
from progeo.models.encoder import build_encoder
from progeo.models.preprocessing import resize_image

ALONE = {"head.weight": 0, "text.weight": 0, "cosine.weight": 1, "training.batches": "images"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An encoder of 96 pixels, other pixel statistics and 64 dimensions."""
    how = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1), "descriptor_dim": 64, "seed": 9}
    encoder = build_encoder("tiny-resnet", "random", 96, **how).eval()
    return save_encoder(tmp_path_factory.mktemp("teacher") / "encoder", encoder, provenance={}, recalls={})


@pytest.fixture
def builder(config, tmp_path):
    def of(settings, **changed):
        cache = {"teacher.descriptor_cache": tmp_path / "cache"}
        return training_builder(config, {**cache, **settings, **changed, "out": tmp_path / "run"})

    return of


def first_piece(training):
    training.begin_epoch(0)
    ((piece,), *_) = training.batches(0, first_step=0)
    return piece


def inputs_of(training, piece):
    """What the terms compute a loss from."""
    seen = {}
    forward = training.terms.forward
    training.terms.forward = lambda inputs: seen.update(inputs) or forward(inputs)
    training.losses(piece)
    return seen


def test_in_a_step_it_sees_the_augmented_image_in_its_own_size_and_pixels(builder, teacher, tmp_path):
    settings = {**ALONE, "attention.weight": 1, "teacher.encoder": teacher}
    training = builder(settings)()
    piece = first_piece(training)
    given, encoder = inputs_of(training, piece), load_encoder(teacher)
    floats = resize_image(jitter_colors(piece.images, piece.plan), (96, 96))
    normalized = (floats - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    with torch.no_grad():
        descriptors, features = encoder(normalized, with_features=True)
    torch.testing.assert_close(given["teacher"], descriptors)
    torch.testing.assert_close(given["teacher_map"], features.map)
    assert (given["map"].shape[2:], given["teacher_map"].shape[2:]) == ((2, 2), (3, 3))
    before = {name: tensor.clone() for name, tensor in training.teacher.encoder.state_dict().items()}
    trainer_of(training, tmp_path / "run").train_epoch(StopRequest())
    assert_same_state(training.teacher.encoder.state_dict(), before)  # frozen, batch norms too
    assert not any(parameter.requires_grad for parameter in training.teacher.encoder.parameters())


def test_from_a_cache_come_the_descriptors_of_the_whole_images(builder, teacher):
    settings = {**ALONE, "teacher.encoder": teacher, "teacher.features": "cache"}
    training = builder(settings)()
    training.teacher.prepare(training.drawn.source.catalogues, training.drawn.data)
    training.teacher.encoder.forward = None  # no step needs it
    piece = first_piece(training)
    given = inputs_of(training, piece)["teacher"]
    catalogue, encoder = training.drawn.source.catalogue, load_encoder(teacher)
    for row, descriptor in zip(piece.targets["rows"].tolist(), given, strict=True):
        pixels = resize_image(read_image(catalogue.path(row)), (96, 96))
        with torch.no_grad():
            expected = encoder(encoder.normalize(pixels)[None])[0]
        torch.testing.assert_close(descriptor, expected, atol=1e-5, rtol=0)


def test_a_linear_map_bridges_dimensions_only_where_asked(builder, teacher):
    settings = {**ALONE, "teacher.encoder": teacher}
    training = builder(settings)()
    linear = training.terms.terms["cosine"].linear
    assert tuple(linear.weight.shape) == (64, 32)
    assert any(linear.weight is parameter for group in training.optimizer.param_groups for parameter in group["params"])
    same = builder(settings, **{"encoder.descriptor_dim": 64})()
    assert list(same.terms.terms["cosine"].parameters()) == []
    with pytest.raises(ValueError, match=r"have 32 dimensions, those of the teacher 64: set `cosine.linear` true"):
        builder(settings, **{"cosine.linear": "false"})()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"teacher.encoder": "null"},
            r"`cosine.weight` above 0 needs descriptors \(B, E\) by a teacher: name the folder",
        ),
        (
            {"attention.weight": 1, "teacher.features": "cache"},
            r"`attention.weight` above 0 needs the feature map .* teacher: set `teacher.features` to step, a cache has",
        ),
        (
            {"head.weight": 1},
            r"`head.weight` above 0 needs class labels \(B,\): nothing .* gives it: set `head.weight` 0, or another",
        ),
        (
            {"gram.weight": 1, "training.micro_batches": 4},
            r"`gram.weight` above 0 compares the images of a micro-batch, and each has only one: set a larger `tra",
        ),
        (
            {"training.images_per_class": 2},
            r"`training.images_per_class` 2 is for `training.batches` classes, and imag",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_image_is_read(builder, teacher, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        builder({**ALONE, "teacher.encoder": teacher}, **changed)


def test_a_teacher_that_no_term_needs_is_said_to_be_ignored(builder, teacher, caplog):
    training = builder({**ALONE, "cosine.weight": 0, "gram.weight": 1, "teacher.encoder": teacher})()
    assert training.teacher is not None and "no loss term needs" not in caplog.text
    training = builder({"text.weight": 0, "teacher.encoder": teacher})()
    assert training.teacher is None and f"no loss term needs the teacher {teacher}" in caplog.text


def test_a_teacher_without_a_map_cannot_give_attention(builder, tmp_path):
    encoder = build_encoder("tiny-vit", "random", 64, seed=1).eval()
    folder = save_encoder(tmp_path / "vit", encoder, provenance={}, recalls={})
    with pytest.raises(ValueError, match=r"the teacher has the aggregation token, which leaves the map out"):
        builder({**ALONE, "attention.weight": 1, "teacher.encoder": folder})


@pytest.fixture
def photos(city, tmp_path):
    """Photos that nobody knows the places of, one of which cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((city / "train").rglob("*.jpg"))[:12]):
        shutil.copy(path, folder / f"photo {number}.jpg")
    (folder / "photo 99.jpg").write_bytes(b"no image")
    return folder


def test_any_folder_of_photos_is_enough(photos, config, teacher, tmp_path, capsys):
    words = {
        **ALONE,
        "data.train_folder": photos,
        "teacher.encoder": teacher,
        "validation.kind": "none",
        "validation.folder": "null",
        "training.keep": "last",
        "training.epochs": 2,
        "out": tmp_path / "run",
    }
    words = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    command = ["train", "encoder", "--config", str(config), *words]
    main(command)
    said = capsys.readouterr().err
    assert "images      13, without labels" in said and "replaced by another image" in said
    assert "epoch 2: loss" in said and "encoder of the last, epoch 2, in" in said
    assert "last/model.safetensors" in files_in(tmp_path / "run/stage2")
    assert load_encoder(tmp_path / "run/stage2/last").descriptor_dim == 32

    other = build_encoder("tiny-resnet", "random", 96, descriptor_dim=64, seed=10).eval()
    folder = save_encoder(tmp_path / "other", other, provenance={}, recalls={})
    again = [*command, "--resume", "true", "--training.epochs", "3", "--teacher.encoder"]
    with pytest.raises(SystemExit, match=r"was begun with another teacher: name the folder of that as --teacher.enc"):
        main([*again, str(folder)])
    moved = shutil.copytree(teacher, tmp_path / "moved")
    metadata = json.loads((moved / "model.json").read_text())
    metadata["encoder"]["image_size"] = [64, 64]
    resized = shutil.copytree(teacher, tmp_path / "resized")
    (resized / "model.json").write_text(json.dumps(metadata))
    with pytest.raises(SystemExit, match=r"was begun with another teacher"):
        main([*again, str(resized)])
    main([*again, str(moved)])
    assert [row["epoch"] for row in metrics_of(tmp_path / "run/stage2")] == [0, 1, 2, 3]


def test_each_photo_is_drawn_once_before_any_is_drawn_again(builder, teacher):
    training = builder({**ALONE, "teacher.encoder": teacher}, **{"training.iterations_per_epoch": 21})()
    rows = torch.cat([piece.targets["rows"] for (piece,) in training.batches(0, first_step=0)])
    assert np.array_equal(np.sort(rows.numpy()), np.arange(84))
