"""Remove the folders of this machine from metadata that are published."""

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from progeo.models.backbones import FAMILIES
from progeo.models.backbones.clip_configurations import FOLDER

_NO_PATHS = ("architecture", "template", "data_license", "license")
_ADDRESSES = ("hf-hub:", "http://", "https://")


def without_folders(value: Any) -> Any:
    """Replace every path in nested plain values by its last part.

    Every string with a `/` counts as a path, except addresses and the values of `architecture` (`ViT-B/16`),
    `template`, `license` and `data_license`; so does an absolute path of Windows. Of `local-dir:PATH` the prefix stays.
    In names such as `open_clip:ViT-B/16:WEIGHTS` only the weights can be a path.
    """
    if isinstance(value, Mapping):
        return {
            name: part if name in _NO_PATHS and not str(part).startswith(FOLDER) else without_folders(part)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    if not isinstance(value, str) or value.startswith(_ADDRESSES):
        return value
    if value.startswith(FOLDER):
        return f"{FOLDER}{Path(value.removeprefix(FOLDER)).name}"
    if weights := weights_in_name(value):
        return f"{value.removesuffix(weights)}{without_folders(weights)}"
    of_windows = PureWindowsPath(value)
    return of_windows.name if of_windows.is_absolute() else Path(value).name


def weights_in_name(name: str) -> str | None:
    """Return the weights in a name of `load_encoder` such as `open_clip:RN50:openai`; None for any other name."""
    family, _, rest = name.partition(":")
    return rest.partition(":")[2] or None if family in FAMILIES else None
