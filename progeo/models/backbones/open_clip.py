"""CLIP models of open_clip as backbones, at any input size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import (
    HUB,
    hub_configuration,
    known_architectures,
    own_spelling,
    plain_architecture,
    resolved_architecture,
)
from progeo.models.backbones.clip_towers import RESNET_STRIDE, positions_of, resize_input, with_parts
from progeo.models.backbones.clips import INTERPOLATION, load_clip, random_tower, visual_tower
from progeo.models.backbones.family import Family, Features, Loaded, NetworkSpec, Traits
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import as_height_width, grid_of_patches
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
        return "gem" if isinstance(vision.get("layers"), list) else "token"

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
        assert isinstance(network, VisionTransformer | ModifiedResNet)
        if isinstance(network, VisionTransformer):
            has_map, has_token = network.attn_pool is None, network.proj is not None
            channels, stride = network.conv1.out_channels, network.patch_size[0]
        else:
            has_map, has_token = True, not isinstance(network.attnpool, nn.Identity)
            channels, stride = network.layer4[-1].conv3.out_channels, RESNET_STRIDE
        return Traits(
            channels=channels if has_map else None,
            token_dim=network.output_dim if has_token else None,
            features_dim=network.output_dim,
            stride=stride,
            shares_text_space=has_token,
            positions=positions_of(network),
        )

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Return the patch tokens of a ViT or the output of layer4 as map; CLIP's image features (B, E) as token."""
        if isinstance(network, ModifiedResNet):
            found = network.stem(images)
            for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
                found = layer(found)
            return Features(found, None if isinstance(network.attnpool, nn.Identity) else network.attnpool(found))
        assert isinstance(network, VisionTransformer)
        if not network.output_tokens:
            return Features(None, network(images))
        token, patches = network(images)
        grid = grid_of_patches(*images.shape[2:], patch=network.patch_size)
        return Features(patches.mT.unflatten(2, grid), None if network.proj is None else token)

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Any]:
        """Return the `mean` and `std` of the Hugging Face configuration, of open_clip's tag, or beside or in a file.

        Raises:
            ValueError: the metadata of a file hold a mean or std that is not JSON.
        """
        known = _preprocess_cfg(architecture, weights) or _pixels_in_metadata(Path(weights))
        return {name: known[name] for name in ("mean", "std") if known.get(name) is not None}

    def own_resize(self, architecture: str, weights: str) -> str:
        """Return the interpolation of the same configurations, bicubic by open_clip's default, or in a file."""
        known = _preprocess_cfg(architecture, weights)
        if known is not None:
            return known.get("interpolation") or "bicubic"
        return read_metadata(Path(weights)).get(INTERPOLATION, "bilinear")

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
        """Enable gradient checkpointing of a ViT's blocks."""
        if not isinstance(network, VisionTransformer):
            return super().checkpoint_gradients(network)
        network.transformer.grad_checkpointing = True


def _preprocess_cfg(architecture: str, weights: str) -> Mapping[str, Any] | None:
    """Return the preprocessing of the Hugging Face configuration, of open_clip's tag, or beside a file; else None."""
    file = Path(weights)
    if weights.startswith(HUB):
        return hub_configuration(weights).get("preprocess_cfg") or {}
    if weights in open_clip.list_pretrained_tags_by_model(own_spelling(architecture)):
        return open_clip.get_pretrained_cfg(own_spelling(architecture), weights)
    is_configured = read_section_beside(file, "model_cfg") is not None
    return (read_section_beside(file, "preprocess_cfg") or {}) if is_configured else None


def _pixels_in_metadata(weights: Path) -> Mapping[str, Any]:
    metadata = read_metadata(weights)
    try:
        return {name: json.loads(metadata[name]) for name in ("mean", "std") if name in metadata}
    except ValueError:
        raise ValueError(f"The metadata of {weights} have a mean or std of pixels that is not JSON.") from None
