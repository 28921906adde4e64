"""Configurations of CLIPs: those of open_clip's architectures and our own, and those that weights bring."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transformer import QuickGELU
from torch import nn

HUB = "hf-hub:"
"""Prefix of the address of a CLIP on Hugging Face's hub."""


def own_spelling(architecture: str) -> str:
    """Spell the name of a CLIP architecture as open_clip does: `ViT-B/16` and `open_clip/ViT-B-16` are `ViT-B-16`."""
    return architecture.removeprefix("open_clip/").replace("/", "-")


def plain_architecture(name: str) -> str:
    """Return the name of a plain CLIP architecture in `own_spelling`.

    Raises:
        ValueError: the architecture is unknown, or not a plain CLIP.
    """
    architecture = own_spelling(name)
    if architecture not in known_architectures():
        raise ValueError(
            f"`architecture` {architecture!r} is not known. Use a CLIP of open_clip, for example RN50, RN101, "
            f"ViT-B-16, ViT-B-32, tiny-resnet or tiny-vit."
        )
    settings = model_settings(open_clip.get_model_config(architecture))
    if any(settings.get(name) for name in ("custom_text", "text_cfg.hf_model_name", "vision_cfg.timm_model_name")):
        raise ValueError(
            f"`architecture` {architecture!r} is not a plain CLIP; use a ViT or RN architecture of open_clip."
        )
    return architecture


def known_architectures() -> list[str]:
    """List the architectures of open_clip and our own."""
    _register_own_architectures()
    return open_clip.list_models()


def resolved_architecture(architecture: str, clip: nn.Module) -> str:
    """Append `-quickgelu` to the architecture's name if the model has QuickGELU and the named one does not."""
    architecture = own_spelling(architecture)
    quick = any(isinstance(module, QuickGELU) for module in clip.modules())
    named = open_clip.get_model_config(architecture).get("quick_gelu", False)
    return f"{architecture}-quickgelu" if quick and not named else architecture


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a configuration into names such as `vision_cfg.layers`, with open_clip's defaults for missing settings.

    Raises:
        TypeError: a setting that open_clip does not have.
    """
    settings = {"quick_gelu": False, **config}
    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        values = dataclasses.asdict(kind(**settings.pop(part)))
        settings |= {f"{part}.{name}": value for name, value in values.items()}
    return settings


def check_same_settings(config: Mapping[str, Any], architecture: str) -> None:
    """Refuse a configuration that differs from that of the architecture, even if all shapes are equal."""
    if missing := {"vision_cfg", "text_cfg"} - config.keys():
        raise RuntimeError(f"its configuration has no {' and no '.join(sorted(missing))}.")
    with_quickgelu = f"{architecture}-quickgelu"
    name = with_quickgelu if config.get("quick_gelu") and with_quickgelu in open_clip.list_models() else architecture
    found, wanted = model_settings(config), model_settings(open_clip.get_model_config(name))
    for key in sorted((found.keys() | wanted.keys()) - {"vision_cfg.image_size"}):  # position embeddings are resized
        if (found.get(key) or None) != (wanted.get(key) or None):
            raise RuntimeError(f"it does not fit, its {key} is {found.get(key)} where {name} has {wanted.get(key)}.")


def hub_configuration(weights: str) -> Mapping[str, Any]:
    """Read the configuration of a CLIP in a Hugging Face repository, downloading it unless it is in the Hub's cache."""
    file = download_pretrained_from_hf(weights.removeprefix(HUB), filename="open_clip_config.json")
    return json.loads(Path(file).read_text(encoding="utf-8"))


@functools.cache
def _register_own_architectures() -> None:
    open_clip.add_model_config(Path(__file__).parents[1] / "architectures")
