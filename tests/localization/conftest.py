import pytest

from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("descriptors")
