import json
import os

import open_clip
import pytest
import torch
from safetensors.torch import safe_open, save_file

from progeo.commands.import_weights import import_weights
from progeo.export.weights import load_encoder
from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.pixel_statistics import pixel_statistics


@pytest.mark.parametrize(
    ("pixels", "metadata"),
    [
        (
            {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"},
            {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]", "interpolation": "bilinear"},
        ),
        ({}, {"interpolation": "bicubic"}),  # by default of open_clip
    ],
)
def test_the_clip_of_an_import_says_its_pixels_where_they_are_known(pixels, metadata, tmp_path):
    state = {name: tensor.clone() for name, tensor in load_clip("tiny-vit", "random").state_dict().items()}
    config = {"model_cfg": open_clip.get_model_config("tiny-vit"), "preprocess_cfg": pixels}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/open_clip_config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "clip/open_clip_model.safetensors")
    folder = import_weights(tmp_path / "clip", out=tmp_path / "encoder")
    with safe_open(folder / "clip.safetensors", framework="pt") as file:
        found = file.metadata()
    assert json.loads(found.pop("configuration")) == named_configuration("tiny-vit").to_json()
    assert found == {"architecture": "tiny-vit", **metadata}
    spec, statistics = load_encoder(folder).spec, pixel_statistics("tiny-vit", str(folder / "clip.safetensors"))
    assert (spec.mean, spec.std, spec.resize) == (statistics.mean, statistics.std, statistics.resize)


def test_an_import_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path):
    file = tmp_path / os.fsdecode(b"clip\xff.pth")  # a name that cannot be written to model.json
    with file.open("wb") as stream:
        torch.save(load_clip("tiny-vit", "random").state_dict(), stream)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        import_weights(file, out=tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == [file]
    import_weights(file.rename(tmp_path / "clip.pth"), out=tmp_path / "encoder")
    names = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert names == {"clip.safetensors", "model.safetensors", "model.json"}
