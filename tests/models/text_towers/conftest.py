"""A hub cache with tiny tokenizers and configurations of text towers."""

import pytest
from tiny_clips import write_hub


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.fixture(autouse=True)
def cached_hub(hub_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return hub_folder
