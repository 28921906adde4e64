"""Image features of networks whose batch norms never saw an image, or see each batch."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from progeo.data.decode import read_image
from progeo.engine.accelerator import start_accelerator
from progeo.features.cache import Cache
from progeo.features.clip_features import cached_features, extraction_order
from progeo.models.backbones.clips import load_clip
from progeo.models.batch_norm import batch_norm_mode
from progeo.models.pixel_statistics import NORMALIZATIONS, pixel_statistics
from progeo.models.preprocessing import resize_image
from progeo.models.state_dicts import weights_digest
from progeo.places.catalogue import read_catalogue

SIZE, BROKEN = 32, 20


@pytest.fixture(scope="module")
def images(city, tmp_path_factory):
    """84 images, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("images") / "train"
    shutil.copytree(city / "train", folder)
    sorted(folder.glob("*.jpg"))[BROKEN].write_bytes(b"broken")
    return folder


@pytest.fixture
def extract(images, tmp_path):
    """Extract the features of all images in the order of their names; returns them, the CLIP and the cache's folder."""

    def extracted(batch_norm, *, folder=images, cache="cache", seed=0, batch_size=21, kind="tiny-resnet"):
        clip = build_clip(kind)
        catalogue = read_catalogue(folder)
        rows = extraction_order(np.arange(len(catalogue)), clip, batch_norm=batch_norm, seed=seed)
        before = set((tmp_path / cache).glob("*"))
        found = cached_features(
            clip,
            catalogue.take(rows),
            Cache(tmp_path / cache, "float16", "feature_cache"),
            start_accelerator("no"),
            architecture=kind.removeprefix("trained "),
            pixels=pixel_statistics("tiny-resnet", "random"),
            batch_size=batch_size,
            num_workers=0,
            max_unreadable_fraction=0.02,
            batch_norm=batch_norm,
            seed=seed,
        )
        features = np.empty((len(rows), found.rows.width), np.float16)
        features[rows] = found.rows.take(np.arange(len(rows)))
        assert rows[found.unreadable].tolist() == [BROKEN]
        assert set((tmp_path / cache).glob("*")) - before <= {found.rows.folder}
        return features, clip, found.rows.folder

    return extracted


def build_clip(kind="tiny-resnet"):
    clip = load_clip(kind.removeprefix("trained "), "random", SIZE).requires_grad_(False)
    if kind.startswith("trained"):
        clip.visual.bn1.running_mean.fill_(0.1)
    return clip


def pixels_of(folder, rows):
    """Images of a folder as a CLIP takes them, without the one that cannot be read."""
    catalogue = read_catalogue(folder)
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATIONS["clip"])
    readable = [row for row in rows if row != BROKEN]
    return torch.stack(
        [(resize_image(read_image(catalogue.path(row)), (SIZE, SIZE)) / 255 - mean) / std for row in readable]
    )


def description(folder):
    return json.loads((folder / "description.json").read_text())


def order_of(seed):
    return np.random.default_rng([seed, 2**32 - 1]).permutation(84).tolist()


def others(values):
    return np.delete(values, BROKEN, axis=0).astype(np.float32)


def test_batch_norms_that_never_saw_an_image_get_the_statistics_of_one_pass(extract, images, caplog):
    features, clip, folder = extract("calibrated")
    plain, order = build_clip(), order_of(0)
    for part in plain.visual.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    plain.visual.train()
    for batch in (order[:42], order[42:]):  # of 64 at most, and alike in size
        plain.encode_image(pixels_of(images, batch))
    plain.visual.eval()
    state = clip.visual.state_dict()
    for name, values in plain.visual.state_dict().items():
        torch.testing.assert_close(state[name], values, rtol=1e-4, atol=1e-5)
    expected = plain.encode_image(pixels_of(images, range(84))).numpy()
    np.testing.assert_allclose(others(features), expected, rtol=2e-3, atol=2e-3)
    assert description(folder)["batch_norm"] == {"mode": "calibrated", "seed": 0, "images": 84}
    assert description(folder)["visual_weights"] == weights_digest(build_clip().visual.state_dict())
    assert caplog.text.count("the batch norms of these weights never saw an image") == 1
    assert "they take the statistics of 83 images, see `batch_norm`" in caplog.text


def test_features_that_are_all_there_need_no_pass(extract, caplog):
    first, _, folder = extract("calibrated")
    (folder / "batch_norm.safetensors").unlink()
    caplog.clear()
    again, clip, _ = extract("calibrated")
    assert np.array_equal(first, again)
    assert not (folder / "batch_norm.safetensors").exists()
    assert batch_norm_mode(clip.visual, "calibrated") == "calibrated"  # as they were
    assert "never saw an image" not in caplog.text


def test_calibrated_features_are_a_function_of_the_seed_and_not_of_the_size_of_batches(extract):
    first, _, folder = extract("calibrated")
    same, _, elsewhere = extract("calibrated", cache="other", batch_size=16)
    assert elsewhere.name == folder.name
    np.testing.assert_allclose(others(first), others(same), rtol=2e-3, atol=2e-3)
    bits = [(found / "batch_norm.safetensors").read_bytes() for found in (folder, elsewhere)]
    assert bits[0] == bits[1]
    other, _, folder_of_other = extract("calibrated", seed=1)
    assert folder_of_other.name != folder.name
    assert not np.array_equal(first, other)


def test_an_extraction_goes_on_with_the_statistics_that_it_was_begun_with(extract, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "own")
    first, _, folder = extract("calibrated", folder=own)
    kept = (folder / "rows_00001.npy").read_bytes()
    statistics = (folder / "batch_norm.safetensors").read_bytes()
    (folder / "rows_00001.npy").unlink()
    *_, last, changed = sorted(own.glob("*.jpg"))
    changed.write_bytes(last.read_bytes())  # which would change the statistics, too
    again, _, _ = extract("calibrated", folder=own)
    assert (folder / "batch_norm.safetensors").read_bytes() == statistics
    assert np.array_equal(first[:-1], again[:-1])
    assert not np.array_equal(first[-1], again[-1])
    assert (folder / "rows_00001.npy").read_bytes() != kept
    for file in folder.glob("rows_*.npy"):
        file.unlink()
    extract("calibrated", folder=own)
    assert (folder / "batch_norm.safetensors").read_bytes() != statistics


def test_damaged_statistics_are_refused(extract):
    _, _, folder = extract("calibrated")
    (folder / "rows_00001.npy").unlink()
    (folder / "batch_norm.safetensors").write_bytes(b"corrupt")
    with pytest.raises(
        ValueError, match=rf"{folder}/batch_norm.safetensors is not a complete .*: remove {folder}, and"
    ):
        extract("calibrated")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("tiny-resnet", "eval"),
        ("trained tiny-resnet", "calibrated"),
        ("tiny-vit", "calibrated"),
        ("tiny-vit", "batch"),
    ],
)
def test_features_with_the_statistics_of_the_weights_are_named_as_ever(extract, images, kind, mode):
    features, _, folder = extract(mode, kind=kind)
    expected = build_clip(kind).encode_image(pixels_of(images, range(84))).numpy()
    np.testing.assert_allclose(others(features), expected, rtol=2e-3, atol=2e-3)
    assert not (folder / "batch_norm.safetensors").exists()
    said = description(folder)
    names = "architecture visual_weights normalization image_size preprocessing orientation mixed_precision kept_as"
    assert sorted(said) == sorted([*names.split(), "image_folder", "image_list", "num_images", "rows_per_file"])


@pytest.mark.parametrize(("batch_size", "taken"), [(21, 21), (16, 15), (200, 84)])
def test_each_batch_of_random_images_is_normalized_with_its_own_statistics(extract, images, batch_size, taken):
    features, _, folder = extract("batch", batch_size=batch_size, seed=3)
    assert description(folder)["batch_norm"] == {"mode": "batch", "seed": 3, "batch_size": taken}
    plain, order = build_clip(), order_of(3)
    plain.visual.train()
    for start in range(0, 84, taken):  # one of these batches has an image less, which cannot be read
        batch = order[start : start + taken]
        expected = plain.encode_image(pixels_of(images, batch)).numpy()
        found = features[[row for row in batch if row != BROKEN]].astype(np.float32)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_a_file_of_features_by_batches_is_the_same_when_it_is_made_alone(extract):
    first, _, folder = extract("batch", batch_size=16)
    for file in sorted(folder.glob("rows_*.npy")):
        before = file.read_bytes()
        file.unlink()
        again, _, _ = extract("batch", batch_size=16)
        assert file.read_bytes() == before
        assert np.array_equal(first, again)
    assert len(list(folder.glob("rows_*.npy"))) == 2
