import json

import open_clip
import pytest
import torch

from progeo.models.clip import known_architectures


@pytest.fixture(scope="session", autouse=True)
def tiny_clips_with_quickgelu(tmp_path_factory):
    """Our tiny CLIPs with the activation of OpenAI's, as open_clip has it of the large ones."""
    known_architectures()
    folder = tmp_path_factory.mktemp("architectures")
    for name in ("tiny-vit", "tiny-resnet"):
        config = {**open_clip.get_model_config(name), "quick_gelu": True}
        (folder / f"{name}-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
