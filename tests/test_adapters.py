"""The adapters of the documentation run as they stand there."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from progeo.data.decode import read_image
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

ADAPTERS = Path(__file__).parents[1] / "docs/adapters.md"


@pytest.fixture
def saved(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96)).eval()
    return save_encoder(tmp_path / "my_encoder", encoder, provenance={}, recalls={}), encoder


@pytest.fixture
def written():
    """What the blocks of the documentation define."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", ADAPTERS.read_text(encoding="utf-8"), flags=re.S):
        exec(block, names)
    return names


def test_the_class_for_vpr_methods_evaluation_undoes_the_normalization_of_imagenet(saved, written):
    folder, encoder = saved
    pixels = torch.rand(2, 3, 96, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        found = written["ProGeoEncoder"](folder)((pixels - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(found, encoder(encoder.normalize(pixels)), rtol=0, atol=1e-5)


def test_the_writer_for_hloc_writes_a_global_descriptor_for_each_image(saved, written, tmp_path):
    folder, encoder = saved
    photos = ("a.jpg", "db/b.JPG", "db/c.jpeg", "d.png")
    rng, lying = np.random.default_rng(0), Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    for name in photos:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8))
        photo.save(tmp_path / "images" / name, exif=lying)
    (tmp_path / "images/notes.txt").touch()
    written["write_global_descriptors"](folder, tmp_path / "images", tmp_path / "global.h5")
    with h5py.File(tmp_path / "global.h5") as file:
        assert [*file, *file["db"]] == ["a.jpg", "d.png", "db", "b.JPG", "c.jpeg"]
        for name in photos:
            with torch.no_grad():
                expected = encoder(encoder.preprocess(read_image(tmp_path / "images" / name))[None])[0]
            assert np.array_equal(file[name]["global_descriptor"], expected.numpy())
