"""What is published names no folders of the machine that it comes from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NO_PATHS = ("architecture", "template")
_ADDRESSES = ("hf-hub:", "http://", "https://")
_AS_IT_COMES = re.compile(r"(open_clip|torchvision):[^:]+:(?P<weights>.+)")


def without_folders(value: Any) -> Any:
    """The same plain values, of every path in them the last part alone.

    Whatever has a `/` counts as a path, but for addresses, names of architectures (`ViT-B/16`) and templates. In names
    such as `open_clip:ViT-B/16:WEIGHTS` the weights alone can be one.
    """
    if isinstance(value, Mapping):
        return {name: part if name in _NO_PATHS else without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    if not isinstance(value, str) or value.startswith(_ADDRESSES):
        return value
    if weights := weights_in_name(value):
        return f"{value.removesuffix(weights)}{without_folders(weights)}"
    return Path(value).name


def weights_in_name(name: str) -> str | None:
    """What `load_encoder` takes for the weights in a name such as `open_clip:RN50:openai`; None in any other."""
    found = _AS_IT_COMES.fullmatch(name)
    return found and found["weights"]
