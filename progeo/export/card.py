"""The model card: a README.md with the YAML header of the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from progeo import __version__
from progeo.atomic import replacing
from progeo.export.folders import weights_in_name, without_folders
from progeo.models.backbones import FAMILIES
from progeo.models.classifier import MEANS, Classifier
from progeo.models.encoder import Encoder
from progeo.models.pixel_statistics import color_in_words
from progeo.printable import markdown_table

_HEADER = {
    "library_name": "progeo",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["visual-place-recognition", "visual-geolocalization", "image-retrieval"],
}
_INTENDED_USE = """The encoder localizes photos only where geotagged reference images are known, and can be wrong there:
calibrate its confidence on photos like those that it will get, and treat positions below a threshold as unknown. It is
meant for places: research, one's own photos, archives, rough positions of robots and vehicles. It is not meant for
finding or following people, nor for decisions about them. It is worse where it was not trained or measured: at night,
in other seasons, in other cities."""
_WEIGHTS_LICENSE, _DATA_LICENSE = "license of these starting weights", "license of the training images"
_USE = "intended use"
_SECTIONS = ("model", "cells", "head", "text", "triplet", "training")


def card_facts(metadata: Mapping[str, Any], encoder: Encoder) -> dict[str, str]:
    """Return what those ask who decide whether they may use an encoder, by name, for its card and `model.json`.

    Args:
        metadata: the content of `model.json`.
        encoder: that of the metadata.
    """
    spec, (height, width) = encoder.spec, encoder.image_size
    # In plain operations, as the fused attention of a CPU is none that PyTorch counts.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(encoder.mean.new_zeros(1, 3, height, width))
    return {
        "license of the code": f"MIT, of progeo {__version__}",
        _WEIGHTS_LICENSE: license_of_weights(spec.family, spec.architecture, starting_weights(metadata)),
        _DATA_LICENSE: _data_license(metadata),
        "parameters": f"{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.1f} million",
        "computation": f"{counter.get_total_flops() / 1e9:.2f} billion floating-point operations for an image of "
        f"{height} x {width} pixels, two for each multiplication with an addition",
        _USE: " ".join(_INTENDED_USE.split()),
    }


def save_card(
    path: Path,
    metadata: Mapping[str, Any],
    usage: str,
    classifier: Classifier | None = None,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the model card of an encoder.

    Args:
        metadata: the content of `model.json`: encoder, recalls and provenance.
        usage: Python code for the card that loads the files beside it.
        classifier: the classifier beside it, if any.
        facts: further rows of its table, such as those of `card_facts`.
    """
    rows = {name: fact for name, fact in {**card_rows(metadata, classifier), **facts}.items() if name != _USE}
    with replacing(path) as temporary:
        temporary.write_text(_card(metadata, usage, rows), encoding="utf-8")


def card_rows(metadata: Mapping[str, Any], classifier: Classifier | None = None) -> dict[str, str]:
    """Return the facts about an encoder that its card lists, by their names, without folders of this machine.

    Args:
        metadata, classifier: see `save_card`.
    """
    encoder = metadata["encoder"]
    license = license_of_weights(encoder["family"], encoder["architecture"], starting_weights(metadata))
    metadata = without_folders(metadata)
    encoder, provenance = metadata["encoder"], metadata["provenance"]
    height, width = encoder["image_size"]
    options = {name: str(value) for name, value in encoder["aggregation_options"].items()}
    return {
        "backbone": f"{encoder['architecture']} of {encoder['family']}",
        "started from": _origin(metadata),
        _WEIGHTS_LICENSE: license,
        _DATA_LICENSE: _data_license(metadata),
        "images": f"{height} x {width} pixels, resized by antialiased {encoder['resize']} interpolation, RGB in 0..1, "
        f"normalized with mean {color_in_words(encoder['mean'])} and std {color_in_words(encoder['std'])}",
        "descriptors": f"{encoder['descriptor_dim']} dimensions, "
        f"{'L2-normalized' if encoder['normalized'] else 'not normalized'}",
        "aggregation": " ".join([encoder["aggregation"], *map("=".join, options.items())]),
        **_projection(encoder.get("pooled_dim"), provenance.get("reduced")),
        **({} if classifier is None else {"classifier": _classes(classifier)}),
        "trained on": str(provenance.get("settings", {}).get("data", {}).get("train_folder", "unknown")),
        "epoch": str(provenance.get("epoch", "unknown")),
        **{name: f"{recall:.1f}" for name, recall in metadata["recalls"].items()},
    }


def starting_weights(metadata: Mapping[str, Any]) -> str | None:
    """Return the weights that training started from, as in `model.weights`; None if they are not known."""
    provenance = metadata["provenance"]
    return (
        provenance.get("settings", {}).get("model", {}).get("weights")
        or weights_in_name(provenance.get("encoder", ""))
        or metadata["encoder"].get("text_weights")
    )


def license_of_weights(family: str, architecture: str, weights: str | None) -> str:
    """Return the license of the weights that training started from, or `unknown` if it is not certain."""
    if weights == "random":
        return "none, training started from random weights"
    return (weights and FAMILIES[family].license(architecture, weights)) or "unknown"


def _data_license(metadata: Mapping[str, Any]) -> str:
    provenance = metadata["provenance"]
    license = provenance.get("data_license") or provenance.get("settings", {}).get("data", {}).get("license")
    return str(license or "unknown")


def _card(metadata: Mapping[str, Any], usage: str, rows: Mapping[str, str]) -> str:
    settings = without_folders(metadata)["provenance"].get("settings", {})
    parts = [
        f"---\n{yaml.safe_dump(_HEADER, sort_keys=False)}---",
        "# An encoder for visual geo-localization",
        "It maps a photo to a descriptor; the nearest descriptors of geotagged images tell where the photo was taken.",
        markdown_table([["", ""], *([name, value] for name, value in rows.items())], num_texts=2).rstrip(),
        f"## Use\n\n```python\n{usage}\n```",
        f"## Intended use\n\n{_INTENDED_USE}",
        "## License\n\nWhoever publishes these weights chooses their license, within the license of the starting "
        "weights and the terms of the training images.",
    ]
    if shown := {name: settings[name] for name in _SECTIONS if name in settings}:
        parts.append(f"## Settings\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```")
    return "\n\n".join(parts) + "\n"


def _origin(metadata: Mapping[str, Any]) -> str:
    provenance = metadata["provenance"]
    if "imported_from" in provenance:
        return f"{provenance['imported_from']}, of {provenance.get('kind', 'an unknown kind')}"
    return starting_weights(metadata) or provenance.get("encoder", "unknown")


def _classes(classifier: Classifier) -> str:
    """Return the classes of a classifier in words."""
    kind = "class means" if classifier.kind == MEANS else f"vectors of the {classifier.kind} head"
    bins = f" and heading bins of {classifier.heading_bin_deg} degrees" if classifier.heading_bin_deg < 360 else ""
    frame = classifier.frame
    zone = "of several zones" if frame.several_zones else f"zone {frame.zone or 'unknown'}"
    hemisphere = f", {frame.hemisphere}" if frame.hemisphere in ("north", "south") else ""
    return f"{kind}, {len(classifier):,} classes: cells of {classifier.cell_side_m} m{bins}, UTM {zone}{hemisphere}"


def _projection(pooled_dim: int | None, pca: Mapping[str, Any] | None) -> dict[str, str]:
    """Return a row about the projection: a PCA of ours, or that of an imported file."""
    if pooled_dim is None:
        return {}
    if pca is None:
        return {"projection": f"from {pooled_dim} dimensions, as imported"}
    whitened = "whitened, " if pca["whiten"] else ""
    return {"PCA": f"from {pooled_dim} dimensions, {whitened}fitted to {pca['images']:,} images of {pca['folder']}"}
