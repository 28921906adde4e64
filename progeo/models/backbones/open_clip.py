"""CLIP models of open_clip as backbones, at any input size that their visual tower takes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import open_clip
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import (
    HUB,
    ClipConfiguration,
    brought_content,
    configuration_of,
    is_address,
    known_architectures,
    named_configuration,
    own_spelling,
    parse_configuration,
    resolve_configuration,
    resolved_architecture,
)
from progeo.models.backbones.clip_towers import KINDS, kind_in, kind_of, parts_of, resize_input, with_parts
from progeo.models.backbones.clips import load_clip, random_tower, visual_tower
from progeo.models.backbones.family import Family, Features, Loaded, NetworkSpec, Traits
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.backbones.timm_layouts import fill_buffers

_EMBEDDING = """\
embedding = backbone.get("visual.attnpool.positional_embedding")
if embedding is not None:
    clip.visual.attnpool.positional_embedding.data = embedding
"""
_DEFINE = """\
import json
import pathlib

pathlib.Path("clip.json").write_text(json.dumps({settings}))
open_clip.add_model_config("clip.json")
"""


class OpenClip(Family):
    """The visual towers of CLIPs: ViTs, ResNets with attention pooling, and networks of timm, see `KINDS`."""

    prefix = "visual."
    usual_normalization = "clip"

    def knows(self, architecture: str) -> bool:
        """Return whether open_clip has a CLIP of this name, `ViT-B/16` is `ViT-B-16`, or it is the address of one."""
        return is_address(architecture) or own_spelling(architecture) in known_architectures()

    def default_aggregation(self, architecture: str) -> str:
        """Return `gem` for a tower of convolutions, such as a ResNet, and `token` for one of tokens, such as a ViT."""
        vision = resolve_configuration(architecture, "random").vision
        return kind_in(vision).default_aggregation(vision)

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Take the visual tower of `load_clip`; one of random weights is built without its text tower."""
        if weights == "random":
            configuration = _configuration(wanted)
            tower = random_tower(configuration, seed).eval()
        else:
            clip = load_clip(wanted.architecture, weights)
            configuration, tower = configuration_of(clip), clip.visual
        if wanted.image_size is not None:
            resize_input(tower, as_height_width(wanted.image_size), wanted.interpolation)
        return Loaded(
            with_parts(tower, wanted.parts),
            resolved_architecture(wanted.architecture, configuration),
            as_height_width(tower.image_size),  # type: ignore[arg-type] # every tower has it
            configuration.to_json(),
        )

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the visual tower of `empty_clip`."""
        with on_meta():
            tower = visual_tower(_configuration(wanted))
            if wanted.image_size is not None:
                resize_input(tower, as_height_width(wanted.image_size), "edges")
        with_parts(tower.eval(), wanted.parts)
        fill_buffers(tower, lambda: self.load(wanted, "random", seed=0).network)
        return tower

    def traits(self, network: nn.Module) -> Traits:
        """Return the properties of a visual tower."""
        traits, parts = kind_of(network).traits(network), parts_of(network)
        token_dim = traits.token_dim if "token" in parts else None
        return replace(traits, token_dim=token_dim, shares_text_space=token_dim is not None)

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Return the patch tokens or the last feature map as map; the CLIP's own image features (B, E) as token."""
        return kind_of(network).features(network, images)

    def configuration(self, architecture: str, weights: str) -> Mapping[str, Any]:
        """Return the configuration of a CLIP with these weights in open_clip's form."""
        return resolve_configuration(architecture, weights).to_json()

    def check_rebuilt(self, architecture: str, configuration: Mapping[str, Any] | None) -> None:
        """Check a configuration in open_clip's form, or that there is a named one, which needs no download."""
        if configuration is not None:
            parse_configuration(configuration, "its backbone")
        elif is_address(architecture) or not self.knows(architecture):
            raise ValueError(f"The family open_clip has no architecture {architecture!r}.")

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Any]:
        """Return the `mean` and `std` of the Hugging Face configuration, of open_clip's tag, or beside or in a file.

        Raises:
            ValueError: the metadata of a file hold a mean or std that is not JSON.
        """
        known = _preprocess_cfg(architecture, weights) or {}
        return {name: known[name] for name in ("mean", "std") if known.get(name) is not None}

    def usual_pixels(self, architecture: str) -> Mapping[str, Any]:
        """Return the `mean` and `std` that all tags of an architecture have, or of the address that it is."""
        name = own_spelling(architecture)
        if is_address(name):
            own = self.own_normalization(name, name)
            return own if len(own) == 2 else {}
        found = [self.own_normalization(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
        return found[0] if found and all(each == found[0] for each in found) else {}

    def own_resize(self, architecture: str, weights: str) -> str:
        """Return the interpolation of the same configurations, bicubic by open_clip's default."""
        known = _preprocess_cfg(architecture, weights)
        return "bilinear" if known is None else known.get("interpolation") or "bicubic"

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of OpenAI's weights, and of those that LAION trained with open_clip."""
        if weights not in open_clip.list_pretrained_tags_by_model(own_spelling(architecture)):
            return None
        if weights == "openai":
            return "MIT, of OpenAI's CLIP; trained on 400 million images and texts of the web, which are not published"
        return "MIT, of open_clip's weights trained on LAION" if weights.startswith("laion") else None

    def usage(
        self,
        architecture: str,
        image_size: tuple[int, int],
        weights: str | None,
        configuration: Mapping[str, Any] | None = None,
    ) -> str:
        """Return Python code that loads the tower into a CLIP, with the text tower of known weights."""
        own = _configuration(NetworkSpec(architecture, configuration=configuration))
        model, pretrained, define = json.dumps(architecture), "None", ""
        if weights in open_clip.list_pretrained_tags_by_model(architecture):
            pretrained = f'"{weights}"'
        elif weights is not None and weights.startswith(HUB):
            model = json.dumps(weights)
        elif is_address(architecture) or own.feature_settings() != named_configuration(architecture).feature_settings():
            model, define = '"clip"', _DEFINE.format(settings=own.to_json())
        whose = "is that of the weights that training began from"
        if (pretrained, model) != ("None", json.dumps(architecture)) and not define:
            whose = "stays as it is"
        is_resnet = kind_in(own.vision) is KINDS[ModifiedResNet]
        gelu = ", force_quick_gelu=True" if own.quick_gelu and pretrained != "None" else ""
        # For a ResNet open_clip supports square images only, and does not resize the embedding.
        size, embedding = ("", _EMBEDDING) if is_resnet else (f", force_image_size={image_size}", "")
        return (
            f"import open_clip\nfrom safetensors.torch import load_file\n\n{define}"
            f"clip = open_clip.create_model({model}, {pretrained}{size}{gelu})\n"
            'backbone = load_file("backbone.safetensors")\n'
            f"{embedding}"
            f"clip.load_state_dict(backbone, strict=False)  # the text tower {whose}"
        )

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`; a ResNet has none."""
        kind_of(network).checkpoint_gradients(network)


def _configuration(wanted: NetworkSpec) -> ClipConfiguration:
    """Return the configuration of a network, that of its architecture unless it has its own."""
    if wanted.configuration is not None:
        return ClipConfiguration(wanted.configuration)
    return resolve_configuration(wanted.architecture, "random")


def _preprocess_cfg(architecture: str, weights: str) -> Mapping[str, Any] | None:
    """Return the preprocessing of open_clip's tag, or of the configuration that weights bring; None without one."""
    name = own_spelling(architecture)
    if weights in open_clip.list_pretrained_tags_by_model(name):
        return open_clip.get_pretrained_cfg(name, weights)
    content, _ = brought_content(weights)
    return None if content is None else content.get("preprocess_cfg") or {}
