"""The model card: a README.md with the YAML header of the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import yaml
from torchvision.models import get_model_weights

from progeo.export.folders import weights_in_name, without_folders
from progeo.files import replacing
from progeo.models.backbones.torchvision import CONVNETS

_HEADER = {
    "library_name": "progeo",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["visual-place-recognition", "visual-geolocalization", "image-retrieval"],
}
_SECTIONS = ("model", "cells", "head", "text", "triplet", "training")


def save_card(path: Path, description: Mapping[str, Any], usage: str) -> None:
    """Write the model card of an encoder.

    Args:
        path: the file.
        description: the content of `model.json`: encoder, recalls and provenance.
        usage: Python code for the card that loads the files beside it.
    """
    with replacing(path) as temporary:
        temporary.write_text(_card(description, usage), encoding="utf-8")


def starting_weights(description: Mapping[str, Any]) -> str | None:
    """Return the weights that training started from, as in `model.weights`; None if they are not known."""
    provenance = description["provenance"]
    return (
        provenance.get("settings", {}).get("model", {}).get("weights")
        or weights_in_name(provenance.get("encoder", ""))
        or description["encoder"]["text_weights"]
    )


def license_of_weights(architecture: str, weights: str | None) -> str:
    """Return the license of the weights that training started from, or `unknown` if it is not certain."""
    if weights == "random":
        return "none, training began from random weights"
    if architecture in CONVNETS:
        if weights in get_model_weights(architecture).__members__:
            return (
                "torchvision's code is BSD-3-Clause; its weights were trained on ImageNet, which has terms of its own"
            )
    elif weights is not None and weights in open_clip.list_pretrained_tags_by_model(architecture):
        if weights == "openai":
            return "MIT, of OpenAI's CLIP"
        if weights.startswith("laion"):
            return "MIT, of open_clip's weights trained on LAION"
    return "unknown"


def _card(description: Mapping[str, Any], usage: str) -> str:
    license = license_of_weights(description["encoder"]["architecture"], starting_weights(description))
    description = without_folders(description)
    encoder, provenance = description["encoder"], description["provenance"]
    settings = provenance.get("settings", {})
    height, width = encoder["image_size"]
    rows = {
        "backbone": encoder["architecture"],
        "started from": _origin(description),
        "license of these starting weights": license,
        "images": f"{height} x {width} pixels, RGB in 0..1, less {_triple(encoder['mean'])}, "
        f"divided by {_triple(encoder['std'])}",
        "descriptors": f"{encoder['descriptor_dim']} dimensions, "
        f"{'of length 1' if encoder['normalized'] else 'of any length'}",
        "pooling": encoder["pooling"],
        **_reduction(description),
        "trained on": settings.get("data", {}).get("train_folder", "unknown"),
        "epoch": provenance.get("epoch", "unknown"),
        **{name: f"{recall:.1f}" for name, recall in description["recalls"].items()},
    }
    parts = [
        f"---\n{yaml.safe_dump(_HEADER, sort_keys=False)}---",
        "# An encoder for visual geo-localization",
        "It maps a photo to a descriptor; the nearest descriptors of geotagged images tell where the photo was taken.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]),
        f"## Use\n\n```python\n{usage}\n```",
        "## License\n\nThat of these weights is for those to say who publish them: the license of the starting weights "
        "and the terms of the images both bear on it.",
    ]
    if shown := {name: settings[name] for name in _SECTIONS if name in settings}:
        parts.append(f"## Settings\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```")
    return "\n\n".join(parts) + "\n"


def _origin(description: Mapping[str, Any]) -> str:
    provenance = description["provenance"]
    if "imported_from" in provenance:
        return f"{provenance['imported_from']}, of {provenance.get('kind', 'an unknown kind')}"
    return starting_weights(description) or provenance.get("encoder", "unknown")


def _reduction(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a table row about the PCA projection of the descriptors; empty if there is none."""
    if (reduced := description["provenance"].get("reduced")) is None:
        return {}
    return {
        "reduced": f"from {description['encoder']['pooled_dim']} dimensions by principal components, "
        f"{'whitened, ' if reduced['whiten'] else ''}of {reduced['images']:,} images of {reduced['folder']}"
    }


def _triple(values: list[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
