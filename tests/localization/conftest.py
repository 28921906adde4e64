import shutil

import pytest
from indexes import blurred, command
from small_indexes import DIM, small_index

from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("descriptors")


@pytest.fixture(scope="module")
def built(city, encoder, cache, tmp_path_factory):
    """An index of the training images, calibrated on blurred copies of them and on others that are not in it."""
    folder = tmp_path_factory.mktemp("built")
    command("index build", cache, folder=city / "train", encoder=encoder, out=folder / "index")
    blurred([*sorted((city / "train").iterdir())[::2], *(city / "test/database").iterdir()], folder / "photos")
    command("index calibrate", cache, folder=folder / "photos", index=folder / "index")
    return folder


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_encoder")
    encoder = build_encoder("tiny-resnet", "random", 48, descriptor_dim=DIM)
    return save_encoder(folder, encoder, provenance={}, recalls={})


@pytest.fixture(scope="module")
def original(small_encoder, tmp_path_factory):
    """An index of three images a0, a1, a2."""
    folder = tmp_path_factory.mktemp("index")
    return small_index(folder / "index", small_encoder, folder)


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "index")
    return tmp_path / "index"
