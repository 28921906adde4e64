import os

import pytest
import torch

from progeo.config.encoders import ImportSettings
from progeo.models.clip import load_clip
from progeo.stages.bring_in import bring_in


def test_an_import_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path):
    file = tmp_path / os.fsdecode(b"clip\xff.pth")  # a name that cannot be written to model.json
    with file.open("wb") as stream:
        torch.save(load_clip("tiny-vit", "random").state_dict(), stream)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        bring_in(ImportSettings(file, to=tmp_path / "encoder"))
    assert list(tmp_path.iterdir()) == [file]
    bring_in(ImportSettings(file.rename(tmp_path / "clip.pth"), to=tmp_path / "encoder"))
    names = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert names == {"clip.safetensors", "model.safetensors", "model.json"}
