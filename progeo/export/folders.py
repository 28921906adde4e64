"""What is published names no folders of the machine that it comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NO_PATHS = ("architecture", "template")
_ADDRESSES = ("hf-hub:", "http://", "https://")


def without_folders(value: Any) -> Any:
    """The same plain values, of every path in them the last part alone.

    Whatever has a `/` counts as a path, but for addresses, names of architectures (`ViT-B/16`) and templates.
    """
    if isinstance(value, Mapping):
        return {name: part if name in _NO_PATHS else without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and not value.startswith(_ADDRESSES) else value
