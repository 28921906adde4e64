"""CLIP models of open_clip as backbones, at any input size."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import (
    HUB,
    hub_configuration,
    known_architectures,
    own_spelling,
    plain_architecture,
    resolved_architecture,
)
from progeo.models.backbones.clip_towers import kind_in, kind_of, parts_of, resize_input, with_parts
from progeo.models.backbones.clips import load_clip, random_tower, visual_tower
from progeo.models.backbones.family import Family, Features, Loaded, NetworkSpec, Traits
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.clip_files import read_section_beside
from progeo.models.weight_files.tensor_files import read_metadata


class OpenClip(Family):
    """The visual towers of plain CLIPs: ViTs, and ResNets with attention pooling."""

    prefix = "visual."
    usual_normalization = "clip"

    def knows(self, architecture: str) -> bool:
        """Return whether open_clip has a CLIP of this name; `ViT-B/16` is `ViT-B-16`."""
        return own_spelling(architecture) in known_architectures()

    def default_aggregation(self, architecture: str) -> str:
        """Return `gem` for a ResNet, whose configuration has a list of layers, and `token` for a ViT."""
        vision = open_clip.get_model_config(plain_architecture(architecture))["vision_cfg"]
        return kind_in(vision).default_aggregation(vision)

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Take the visual tower of `load_clip`; one of random weights is built without its text tower."""
        if weights == "random":
            tower = random_tower(plain_architecture(wanted.architecture), seed).eval()
        else:
            tower = load_clip(wanted.architecture, weights).visual
        if wanted.image_size is not None:
            resize_input(tower, as_height_width(wanted.image_size), wanted.interpolation)
        size, architecture = as_height_width(tower.image_size), resolved_architecture(wanted.architecture, tower)
        return Loaded(with_parts(tower, wanted.parts), architecture, size)

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the visual tower of `empty_clip`."""
        with on_meta():
            tower = visual_tower(plain_architecture(wanted.architecture))
            if wanted.image_size is not None:
                resize_input(tower, as_height_width(wanted.image_size), "edges")
        return with_parts(tower.eval(), wanted.parts)

    def traits(self, network: nn.Module) -> Traits:
        """Return the properties of a visual tower."""
        traits, parts = kind_of(network).traits(network), parts_of(network)
        token_dim = traits.token_dim if "token" in parts else None
        return replace(traits, token_dim=token_dim, shares_text_space=token_dim is not None)

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Return the patch tokens or the last feature map as map; the CLIP's own image features (B, E) as token."""
        return kind_of(network).features(network, images)

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Any]:
        """Return the `mean` and `std` of the Hugging Face configuration, of open_clip's tag, or beside or in a file.

        Raises:
            ValueError: the metadata of a file hold a mean or std that is not JSON.
        """
        architecture = own_spelling(architecture)
        if weights.startswith(HUB):
            known = hub_configuration(weights).get("preprocess_cfg") or {}
        elif weights in open_clip.list_pretrained_tags_by_model(architecture):
            known = open_clip.get_pretrained_cfg(architecture, weights)
        else:
            known = read_section_beside(Path(weights), "preprocess_cfg") or _pixels_in_metadata(Path(weights))
        return {name: known[name] for name in ("mean", "std") if known.get(name) is not None}

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of OpenAI's weights, and of those that LAION trained with open_clip."""
        if weights not in open_clip.list_pretrained_tags_by_model(own_spelling(architecture)):
            return None
        if weights == "openai":
            return "MIT, of OpenAI's CLIP; trained on 400 million images and texts of the web, which are not published"
        return "MIT, of open_clip's weights trained on LAION" if weights.startswith("laion") else None

    def usage(self, architecture: str, image_size: tuple[int, int], weights: str | None) -> str:
        """Return Python code that loads the tower into a CLIP, with the text tower of known weights."""
        known = weights in open_clip.list_pretrained_tags_by_model(architecture)
        pretrained = f'"{weights}"' if known else None
        whose = "stays as it is" if known else "is that of the weights that training began from"
        is_vit = self.default_aggregation(architecture) == "token"
        size = f", force_image_size={image_size}" if is_vit else ""
        # For a ResNet open_clip supports square images only, and does not resize the embedding.
        embedding = (
            'embedding = backbone.get("visual.attnpool.positional_embedding")\n'
            "if embedding is not None:\n"
            "    clip.visual.attnpool.positional_embedding.data = embedding\n"
        )
        return (
            "import open_clip\n"
            "from safetensors.torch import load_file\n\n"
            f'clip = open_clip.create_model("{architecture}", {pretrained}{size})\n'
            'backbone = load_file("backbone.safetensors")\n'
            f"{'' if is_vit else embedding}"
            f"clip.load_state_dict(backbone, strict=False)  # the text tower {whose}"
        )

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`; a ResNet has none."""
        kind_of(network).checkpoint_gradients(network)


def _pixels_in_metadata(weights: Path) -> Mapping[str, Any]:
    metadata = read_metadata(weights)
    try:
        return {name: json.loads(metadata[name]) for name in ("mean", "std") if name in metadata}
    except ValueError:
        raise ValueError(f"The metadata of {weights} have a mean or std of pixels that is not JSON.") from None
