"""A repository of Hugging Face's hub in its cache on the disk, and architectures of our own."""

import json

import open_clip
import pytest
from safetensors.torch import save_file

from progeo.models.backbones.clip_configurations import known_architectures


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write `hf-hub:someone/clip`: its configuration and the weights of a model."""
    known_architectures()
    folder = tmp_path / "models--someone--clip"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def write(config, model):
        (folder / "snapshots/abc/open_clip_config.json").write_text(json.dumps(config))
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "snapshots/abc/open_clip_model.safetensors")

    return write


@pytest.fixture
def architecture(monkeypatch):
    """Register an architecture that is our tiny ViT but for some settings, written `part.name`; returns its name."""
    known_architectures()

    def register(name, settings):
        config = open_clip.get_model_config("tiny-vit")
        for key, value in settings.items():
            part, _, inner = key.rpartition(".")
            (config[part] if part else config)[inner] = value
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        return name

    return register
