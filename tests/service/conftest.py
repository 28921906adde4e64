import pytest
from indexes import command

from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder


@pytest.fixture(scope="module")
def served_index(city, tmp_path_factory):
    """A place index of the training images for services of a module."""
    folder = tmp_path_factory.mktemp("served")
    encoder = build_encoder("tiny-resnet", "random", 48).eval()
    save_encoder(folder / "encoder", encoder, provenance={}, recalls={})
    command("index build", folder / "cache", folder=city / "train", encoder=folder / "encoder", out=folder / "index")
    return folder / "index"


@pytest.fixture(scope="session")
def photos(city):
    return sorted((city / "test/queries").iterdir())
