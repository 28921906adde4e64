"""Whoever gives an encoder or a CLIP images resizes them by its own interpolation: a table of them all.

Photos that an exported program resizes are in `tests/export/test_program.py`.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts import training_builder
from indexes import command
from PIL import Image

from progeo.data.decode import read_image
from progeo.data.options import DataOptions
from progeo.engine.accelerator import start_accelerator
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.cache import Cache
from progeo.features.clip_features import cached_features
from progeo.features.descriptors import descriptor_extractor, descriptor_metadata, extract_descriptors, is_metadata_of
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.localization.place_index import open_place_index
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder
from progeo.models.pixel_statistics import pixel_statistics
from progeo.places.catalogue import read_catalogue
from progeo.training.image_descriptors import extract_image_descriptors
from progeo.training.options import TeacherOptions
from progeo.training.teacher import Teacher

SIDE = 64
RESIZES = ("bilinear", "bicubic")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos of noise, 96 x 140 pixels."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for east in (550000, 550100, 550200):
        pixels = rng.integers(0, 256, (96, 140, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"@{east}@4180000@10@S@@@@@@@@@@@.png")
    return read_catalogue(folder)


@pytest.fixture(scope="module", params=RESIZES)
def folder(request, tmp_path_factory):
    """An encoder for images of 64 pixels, resized by this interpolation."""
    encoder = build_encoder("tiny-vit", "random", SIDE, resize=request.param).eval()
    return save_encoder(tmp_path_factory.mktemp("encoder") / request.param, encoder, provenance={}, recalls={})


def pixels_of(catalogue, size=(SIDE, SIDE)):
    """All images, uint8 (N, 3, H, W), by their names, resized by torch, by interpolation."""
    images = torch.stack([read_image(catalogue.path(row)) for row in range(len(catalogue))])
    return {resize: F.interpolate(images, size, mode=resize, antialias=True) for resize in RESIZES}


def preprocessed(folder, photos, tmp_path):
    encoder = load_encoder(folder)
    return encoder(torch.stack([encoder.preprocess(Image.open(photos.path(row))) for row in range(len(photos))]))


def extracted(folder, photos, tmp_path):
    extractor = descriptor_extractor(load_encoder(folder), ImageOptions(), start_accelerator("no"))
    return stored(extractor, photos, tmp_path)


def stored(extractor, photos, tmp_path):
    work, cache = WorkOptions(num_workers=0), CacheOptions(descriptor_cache=tmp_path / "cache")
    rows = extract_descriptors(extractor, photos, start_accelerator("no"), work=work, cache=cache)
    return torch.from_numpy(rows.complete.take(np.arange(len(photos))))


def of_training_images(folder, photos, tmp_path):
    data = DataOptions(train_folder=photos.folder, num_workers=0)
    how = {"data": data, "cache": tmp_path / "cache"}
    found = extract_image_descriptors(load_encoder(folder), [photos], start_accelerator("no"), **how)
    return torch.from_numpy(found.take(np.arange(len(photos))))


def of_a_teacher(folder, photos, tmp_path):
    teacher = Teacher(TeacherOptions(encoder=folder), start_accelerator("no"))
    images = torch.stack([read_image(photos.path(row)) for row in range(len(photos))]).float() / 255
    return teacher(images, with_map=False)["teacher"]


def of_an_index(folder, photos, tmp_path):
    command("index build", tmp_path / "cache", folder=photos.folder, encoder=folder, out=tmp_path / "index")
    index = open_place_index(tmp_path / "index")
    paths = index.catalogue.table["path"].to_pylist()
    rows = [paths.index(str(photos.path(row).resolve())) for row in range(len(photos))]
    return torch.from_numpy(index.parts[0].descriptors[rows])


def localized(folder, photos, tmp_path):
    of_an_index(folder, photos, tmp_path)
    (extractor,) = open_place_index(tmp_path / "index").query_extractors
    return stored(extractor, photos, tmp_path)


@pytest.mark.parametrize(
    "found",
    [preprocessed, extracted, of_training_images, of_a_teacher, of_an_index, localized],
)
@torch.no_grad()
def test_descriptors_are_of_images_resized_as_the_encoder_says(found, folder, photos, tmp_path):
    encoder = load_encoder(folder)
    expected = {resize: encoder(encoder.normalize(pixels)) for resize, pixels in pixels_of(photos).items()}
    assert (expected["bicubic"] - expected["bilinear"]).abs().max() > 1e-2
    # The teacher's floats are not rounded to 256 gray levels.
    atol = 2e-3 if found is of_a_teacher else 1e-5
    torch.testing.assert_close(found(folder, photos, tmp_path), expected[encoder.resize], rtol=0, atol=atol)


@torch.no_grad()
def test_stage_1_compares_prompts_with_images_resized_as_is_set(photos, tmp_path):
    clip, seen = load_clip("tiny-vit", "random", SIDE), pixels_of(photos)
    how = {"architecture": "tiny-vit", "batch_size": 3, "num_workers": 0, "max_unreadable_fraction": 0}
    for resize in RESIZES:
        pixels, cache = pixel_statistics("tiny-vit", "random", resize=resize), Cache(tmp_path, "float32", "cache")
        found = cached_features(clip, photos, cache, start_accelerator("no"), pixels=pixels, **how)
        mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
        expected = clip.encode_image((seen[resize] / 255 - mean) / std)
        torch.testing.assert_close(torch.from_numpy(found.rows.take(np.arange(3))), expected, rtol=0, atol=1e-4)
        key = json.loads((found.rows.folder / "description.json").read_text())
        assert key.get("resize") == (None if resize == "bilinear" else resize)  # as before it was a choice
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("batches", ["classes", "tuples"])
def test_training_resizes_crops_as_is_set(batches, config, tmp_path):
    settings = {"model.resize": "bicubic", "encoder.image_size": 96, "augmentation.crop_scale": "1 1", "text.weight": 0}
    if batches == "tuples":
        settings |= {"training.batches": "tuples", "mining.negatives": 3, "mining.pool": 10, "mining.queries": 4}
        settings |= {"head.weight": 0, "tuples.weight": 1}
    training = training_builder(config, {**settings, "out": tmp_path})()
    training.begin_epoch(0)
    ((piece, *_), *_) = training.batches(0, first_step=0)
    images = [read_image(path) for path in paths_of(training.drawn.source.catalogues)]
    resized = torch.stack([images[row] for row in piece.targets["rows"].tolist()])
    expected = F.interpolate(resized, (96, 96), mode="bicubic", antialias=True)
    assert torch.equal(piece.images, expected)
    assert training.encoder.spec.resize == "bicubic"


def paths_of(catalogues):
    return [catalogue.path(row) for catalogue in catalogues for row in range(len(catalogue))]


def test_caches_of_bilinear_images_stay_and_those_of_bicubic_images_are_others(photos, tmp_path):
    keys = {}
    for resize in RESIZES:
        encoder = build_encoder("tiny-vit", "random", SIDE, resize=resize).eval()
        keys[resize] = descriptor_metadata(encoder)
        stored(descriptor_extractor(encoder, ImageOptions(), start_accelerator("no")), photos, tmp_path)
        assert len(list((tmp_path / "cache").iterdir())) == len(keys)
        assert is_metadata_of(keys[resize], encoder)
    assert "resize" not in keys["bilinear"]["encoder"]  # as before it was a field
    assert keys["bicubic"]["encoder"] == {**keys["bilinear"]["encoder"], "resize": "bicubic"}
    former = {**keys["bilinear"]["encoder"], "pooling": "clip", "align_corners": False}
    assert not is_metadata_of({**keys["bicubic"], "encoder": former}, encoder)
