"""What an encoder in training finds among validation images, beside a plain loop over them."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import classifier_of
from contracts import check_resume, training_builder
from PIL import ExifTags, Image
from torch import nn

from progeo.data.decode import read_image
from progeo.data.options import DataOptions
from progeo.datasets.query_sets import QuerySet
from progeo.engine.accelerator import start_accelerator
from progeo.models.encoder import build_encoder
from progeo.models.preprocessing import preprocess_image
from progeo.places.catalogue import read_catalogue
from progeo.places.geographic import positions_m
from progeo.training.options import TrainerOptions, ValidationOptions
from progeo.training.validation import VALIDATIONS, build_validation, check_validation, retrieve

SIZES = ((64, 64), (150, 90), (90, 200))
"""Widths and heights, in turn."""


@pytest.fixture(scope="module")
def query_set(tmp_path_factory):
    """Seven database images and three queries, of colored fields and three shapes."""
    root = tmp_path_factory.mktemp("shapes")
    fields = np.random.default_rng(0).integers(256, size=(10, 5, 5, 3), dtype=np.uint8)
    for side, rows in (("database", range(7)), ("queries", range(7, 10))):
        (root / side).mkdir()
        for row in rows:
            Image.fromarray(fields[row]).resize(SIZES[row % 3], Image.NEAREST).save(root / side / f"@{row}@0@.png")
    return QuerySet(read_catalogue(root / "database"), read_catalogue(root / "queries"), None)


@pytest.fixture
def encoder():
    return build_encoder("tiny-vit", "random", 64).train()


@pytest.fixture(params=VALIDATIONS)
def kind(request):
    return request.param


@pytest.fixture
def classifier(city):
    """Random vectors for classes of cells in which each second query lies, and for others."""
    (positions,) = positions_m(read_catalogue(city / "val/queries"))
    corners = np.floor(positions[::2] / 20).astype(int) * 20
    ids = [(*corner, 0) for corner in (*corners, *(corners + np.array([2000, 0])))]
    return classifier_of(ids, dim=128)


@pytest.mark.parametrize("training", [True, False])
def test_a_validation_measures_the_same_in_any_batch_and_leaves_the_encoder_as_it_was(
    kind, encoder, classifier, city, training
):
    options = ValidationOptions(folder=city / "val", kind=kind)
    encoder.train(training)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = []
    for batch_size in (1, 3, 16):
        data = DataOptions(train_folder=Path(), eval_batch_size=batch_size, num_workers=0)
        validation = build_validation(options, data)
        found.append(validation.measure(encoder, start_accelerator("no"), classifier=classifier))
    measures = found[0]
    assert found == [measures] * 3
    assert (measures is not None) == validation.has_measures
    if measures is not None:
        assert measures.best == measures.values[measures.primary]
        assert all(type(value) is float and math.isfinite(value) for value in measures.values.values())
    assert encoder.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_validation_names_its_images_and_its_state_returns(kind, city):
    data = DataOptions(train_folder=Path(), num_workers=0)
    options = ValidationOptions(folder=city / "val", kind=kind)
    validation, again = (build_validation(options, data) for _ in range(2))
    assert (sum(map(len, validation.catalogues)) > 0) == validation.has_measures and str(validation)
    again.load_state_dict(validation.state_dict())
    assert again.state_dict() == validation.state_dict()
    with pytest.raises(ValueError, match=rf"`validation\.kind` must be one of .*{kind}.*, got 'guess'"):
        build_validation(replace(options, kind="guess"), data)


def test_a_training_with_a_validation_that_is_resumed_ends_with_the_same_bits(kind, config, tmp_path):
    settings = {"validation.kind": kind, "text.weight": 0, "training.keep": "last"}
    check_resume(training_builder(config, settings), tmp_path)


@pytest.mark.parametrize(
    ("options", "training", "sentence"),
    [
        ({}, {}, "Missing settings: `validation.folder`. `validation.kind` retrieval needs it"),
        ({"kind": "none"}, {}, "`training.keep` best needs a validation, and `validation.kind` is none"),
        ({"kind": "none"}, {"keep": "last", "patience": 3}, "`training.patience` needs a validation"),
        ({"kind": "none"}, {"keep": "last", "schedule": "plateau"}, "`training.schedule` plateau needs a validation"),
    ],
)
def test_a_training_that_needs_a_validation_and_has_none_is_refused(options, training, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        check_validation(ValidationOptions(**options), TrainerOptions(**training), learns_classes=True)


def test_classification_is_the_share_of_queries_near_the_center_of_a_class_with_a_high_cosine(
    encoder, classifier, city, caplog
):
    queries = read_catalogue(city / "val/queries")
    options = ValidationOptions(folder=city / "val", kind="classification", positive_radius_m=12.0)
    validation = build_validation(options, DataOptions(train_folder=Path(), num_workers=0))
    # Vectors as the descriptors are, of any length, so that the class of a query has the highest cosine.
    descriptors = one_by_one(encoder, queries, "hard_resize")
    (own,) = positions_m(queries)
    inside = np.abs(own[:, None] - classifier.centers_m).max(axis=2) <= 10
    weight = np.array(classifier.weight)
    for query, row in zip(*np.nonzero(inside), strict=True):
        weight[row] = (3 + row) * descriptors[query].numpy()
    expected = []
    for n in (1, 5, 10, 20):
        correct = 0
        for descriptor, position in zip(descriptors.numpy(), own, strict=True):
            cosines = [descriptor @ vector / np.linalg.norm(vector) for vector in weight]
            best = np.argsort(cosines)[::-1][:n]
            correct += any(math.dist(position, classifier.centers_m[row]) <= 12 for row in best)
        expected.append(100 * correct / len(own))
    found = validation.measure(encoder, start_accelerator("no"), classifier=replace(classifier, weight=weight))
    assert list(found.values.values()) == pytest.approx(expected)
    assert (list(found.values), found.primary) == (["LR@1", "LR@5", "LR@10", "LR@20"], "LR@1")
    assert 0 < found.best < 100 and not caplog.records
    assert str(validation) == "6 queries, class centers within 12 m"


def test_queries_that_classification_cannot_find_are_named_once(encoder, classifier, city, tmp_path, caplog):
    data = DataOptions(train_folder=Path(), num_workers=0)
    options = ValidationOptions(folder=city / "val", kind="classification")
    far = replace(classifier, class_ids=classifier.class_ids + np.array([4000, 0, 0]))
    validation = build_validation(options, data)
    for _ in range(2):
        found = validation.measure(encoder, start_accelerator("no"), classifier=far)
        assert set(found.values.values()) == {0.0}
    (warning,) = (record.getMessage() for record in caplog.records)
    assert f"no query of {city}/val/queries lies in the cell of a class" in warning
    with pytest.raises(ValueError, match=r"`validation.positive_angle_deg` is not for `validation.kind` class"):
        build_validation(replace(options, positive_angle_deg=40.0), data)
    photos = shutil.copytree(city / "val/queries", tmp_path / "queries")
    next(photos.iterdir()).rename(photos / "photo.jpg")
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        build_validation(replace(options, folder=tmp_path), data)


@pytest.fixture
def found(query_set):
    def rows(encoder, preprocessing, batch_size):
        accelerator = start_accelerator("no")
        data = DataOptions(train_folder=Path(), eval_batch_size=batch_size, num_workers=0)
        return retrieve(encoder, query_set, accelerator, count=7, preprocessing=preprocessing, data=data)

    return rows


@torch.no_grad()
def one_by_one(encoder, images, preprocessing):
    encoder.eval()
    rows = []
    for row in range(len(images)):
        pixels = preprocess_image(read_image(images.path(row)), preprocessing, (64, 64))
        crops = pixels if preprocessing == "five_crops" else pixels[None]
        rows.append(torch.stack([encoder(encoder.normalize(crop)[None])[0] for crop in crops]).mean(dim=0))
    encoder.train()
    return torch.stack(rows)


def test_images_are_found_as_one_by_one_whatever_becomes_of_their_shapes(encoder, query_set, found):
    orders = set()
    for preprocessing in ("hard_resize", "native", "single_query", "central_crop", "five_crops"):
        database, queries = (
            one_by_one(encoder, side, preprocessing) for side in (query_set.database, query_set.queries)
        )
        expected = torch.cdist(queries, database).argsort(dim=1).numpy()
        for batch_size in (2, 16):
            np.testing.assert_array_equal(found(encoder, preprocessing, batch_size), expected, preprocessing)
        orders.add(expected.tobytes())
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("preprocessing", "shapes"),
    [
        ("hard_resize", [(2, 64, 64)] * 6),
        # Their number of pixels counts: two of 90 x 150 are more than two of the encoder's size.
        ("native", [(2, 64, 64), (1, 64, 64), *[(1, 90, 150)] * 2, *[(1, 200, 90)] * 2]),
    ],
)
def test_batches_are_of_one_shape_and_full_where_all_have_the_same(encoder, found, preprocessing, shapes):
    seen, training = [], []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(np.delete(inputs[0].shape, 1))))
    encoder.register_forward_pre_hook(lambda module, inputs: training.append(module.training))
    found(encoder, preprocessing, 2)
    assert seen[: len(shapes)] == shapes
    assert not any(training)
    assert encoder.training


@pytest.mark.parametrize(("orientation", "nearest"), [("ignore", 0), ("exif", 1)])
def test_photos_are_turned_only_where_asked(encoder, tmp_path, orientation, nearest):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for side in ("database", "queries"):
        (tmp_path / side).mkdir()
    Image.fromarray(pixels).save(tmp_path / "database/@0@0@.png")
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "database/@1@0@.png")
    Image.fromarray(pixels).save(tmp_path / "queries/@0@0@.png", exif=exif)
    query_set = QuerySet(*(read_catalogue(tmp_path / side) for side in ("database", "queries")), None)
    data = DataOptions(train_folder=Path(), eval_batch_size=2, num_workers=0, orientation=orientation)
    how = {"preprocessing": "hard_resize", "data": data}
    assert retrieve(encoder, query_set, start_accelerator("no"), count=1, **how).tolist() == [[nearest]]


class Unfathomable(nn.Module):
    """An encoder that no cache could keep descriptors of."""

    image_size = (64, 64)
    descriptor_dim = 3
    factor = staticmethod(lambda: 2.0)

    def __init__(self):
        super().__init__()
        self.own = lambda: 2.0

    def normalize(self, images):
        return images.float()

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.own()


def test_validation_does_not_have_to_tell_an_encoder_from_others(query_set, found):
    assert found(Unfathomable(), "hard_resize", 4).shape == (3, 7)


def test_an_image_that_cannot_be_validated_on_is_named(encoder, query_set, tmp_path):
    for side in ("database", "queries"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (64, 20)).save(tmp_path / side / "@0@0@.png")
    small = QuerySet(*(read_catalogue(tmp_path / side) for side in ("database", "queries")), None)
    with pytest.raises(
        ValueError, match=r"database/@0@0@.png cannot be preprocessed: 20 x 64 pixels are fewer than 32"
    ):
        data = DataOptions(train_folder=Path(), eval_batch_size=2, num_workers=0)
        retrieve(encoder, small, start_accelerator("no"), count=1, preprocessing="native", data=data)
