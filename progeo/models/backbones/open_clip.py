"""CLIP models of open_clip, with pretrained, local or explicitly random weights, at any input size."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import torch
from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from progeo.models.backbones.family import (
    Family,
    Features,
    ImageSize,
    Interpolation,
    Loaded,
    NetworkSpec,
    Part,
    PositionEmbedding,
    Traits,
)
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import (
    as_height_width,
    grid_of_patches,
    resize_positions,
    resized_embedding,
)
from progeo.models.clip_files import read_clip_file, read_section_beside
from progeo.models.state_dicts import check_file_fits
from progeo.models.weight_files.checkpoints import reason_of
from progeo.models.weight_files.tensor_files import read_metadata
from progeo.printable import printable

LOGGER = logging.getLogger("progeo")
ARCHITECTURE = "architecture"
"""Key of the architecture, if it is known, in the metadata of a .safetensors file.

The keys `mean` and `std` hold the pixel statistics that the weights were trained with, each as JSON.
"""
RESNET_STRIDE = 32
_HUB = "hf-hub:"
NORMALIZATIONS = MappingProxyType(
    {
        "clip": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)


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
            tower = _random_tower(plain_architecture(wanted.architecture), seed).eval()
        else:
            tower = load_clip(wanted.architecture, weights).visual
        if wanted.image_size is not None:
            resize_input(tower, as_height_width(wanted.image_size), wanted.interpolation)
        size, architecture = as_height_width(tower.image_size), resolved_architecture(wanted.architecture, tower)
        return Loaded(_prepared(tower, wanted.parts), architecture, size)

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the visual tower of `empty_clip`."""
        with on_meta():
            tower = _visual_tower(plain_architecture(wanted.architecture))
            if wanted.image_size is not None:
                resize_input(tower, as_height_width(wanted.image_size), "edges")
        return _prepared(tower.eval(), wanted.parts)

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
            positions=_positions(network),
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
        architecture = own_spelling(architecture)
        if weights.startswith(_HUB):
            known = _hub_configuration(weights).get("preprocess_cfg") or {}
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
        """Enable gradient checkpointing of a ViT's blocks."""
        if not isinstance(network, VisionTransformer):
            return super().checkpoint_gradients(network)
        network.transformer.grad_checkpointing = True


def load_clip(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    interpolation: Interpolation = "edges",
    seed: int = 0,
) -> CLIP:
    """Build a CLIP model in eval mode, with its position embedding resized to the image size.

    Args:
        architecture: an open_clip name such as `RN50` or `ViT-B-16` (`ViT-B/16` is the same), or our `tiny-vit` and
            `tiny-resnet`.
        weights: an open_clip tag such as `openai` (QuickGELU is set to match the tag), `hf-hub:owner/name`, a local
            file (see `find_weights`; refused if its metadata name another architecture), or `random`. If the activation
            of a file is not known, that of the architecture is used and logged.
        image_size: pixels, the side of a square or (height, width); None keeps the size of the architecture.
        interpolation: how the position embedding is resized to the image size.
        seed: seed of `random` weights.

    Raises:
        ValueError: an unknown architecture or tag, or weights that do not fit.
    """
    architecture = plain_architecture(architecture)
    model = _random_clip(architecture, seed) if weights == "random" else _pretrained_clip(architecture, weights)
    if image_size is not None:
        resize_input(model.visual, as_height_width(image_size), interpolation)
    return model.eval()


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


def empty_clip(architecture: str, image_size: ImageSize | None = None) -> CLIP:
    """Build a CLIP model on the meta device, without weights, to load a state dict into."""
    _register_own_architectures()
    with on_meta(), without_warnings("root"):
        model = open_clip.create_model(architecture, load_weights=False, device="meta")
        if image_size is not None:
            resize_input(model.visual, as_height_width(image_size), "edges")
    return model.eval()


def resize_input(
    visual: VisionTransformer | ModifiedResNet, image_size: tuple[int, int], interpolation: Interpolation
) -> None:
    """Resize the position embedding of a visual tower in place for inputs of (height, width) pixels."""
    positions = _positions(visual)
    assert positions is not None
    resize_positions(visual, positions, image_size, interpolation)
    visual.image_size = image_size
    if isinstance(visual, VisionTransformer):
        visual.grid_size = positions.grid_of(*image_size)


def weights_anywhere(architecture: str, weights: str) -> str:
    """Make the path of a weights file absolute; a tag stays as it is, and wins over a file of the same name."""
    is_tag = weights in open_clip.list_pretrained_tags_by_model(architecture)
    return str(Path(weights).absolute()) if Path(weights).is_file() and not is_tag else weights


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


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 digest of the names and values (not shapes) of a state dict, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@functools.cache
def _register_own_architectures() -> None:
    open_clip.add_model_config(Path(__file__).parents[1] / "architectures")


@contextmanager
def without_warnings(*names: str) -> Iterator[None]:
    """Silence warnings of these loggers and those below them."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _random_clip(architecture: str, seed: int, *, quickgelu: bool = False) -> CLIP:
    with torch.random.fork_rng(devices=[]), without_warnings("root"):  # about the random weights requested
        torch.manual_seed(seed)
        return open_clip.create_model(architecture, load_weights=False, force_quick_gelu=quickgelu)


def _random_tower(architecture: str, seed: int) -> VisionTransformer | ModifiedResNet:
    """Build the visual tower of `_random_clip`, with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _visual_tower(architecture)


def _visual_tower(architecture: str) -> VisionTransformer | ModifiedResNet:
    """Build the visual tower of a plain CLIP as open_clip does, which builds it before anything else of the CLIP."""
    config = open_clip.get_model_config(architecture)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    return open_clip.model._build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def _pretrained_clip(architecture: str, weights: str) -> CLIP:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    from_hub = weights.startswith(_HUB)
    if not from_hub and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor hf-hub:owner/name, nor random, nor a tag of "
            f"{architecture} ({', '.join(tags) or 'it has none'})."
        )
    try:
        if from_hub:
            _check_same_settings(_hub_configuration(weights).get("model_cfg") or {}, architecture)
            return open_clip.create_model(weights, require_pretrained=True)
        if weights not in tags:
            return _clip_of_file(architecture, Path(weights))
        quick = bool((open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu"))
        return open_clip.create_model(
            architecture, weights, force_quick_gelu=quick, require_pretrained=True, weights_only=True
        )
    except Exception as error:  # a file that is not a checkpoint can fail in any way
        reason = reason_of(error, weights)
        if "Error(s) in loading" in reason:
            reason = printable(str(error).splitlines()[1].strip().rstrip("."))
        if reason.startswith("Weights only load failed"):  # PyTorch's message advises to run the code in the file
            reason = "it holds more than weights"
        raise ValueError(f"`weights` {weights!r} could not be loaded as {architecture}: {reason}.") from None


def _clip_of_file(architecture: str, path: Path) -> CLIP:
    """Build a CLIP from a file of weights, with the activation of the file if known, else of the architecture."""
    stored = read_metadata(path).get(ARCHITECTURE)
    if stored not in (None, architecture):
        raise ValueError(f"by its metadata it is a {stored}: give that as `architecture`.")
    if (model_cfg := read_section_beside(path, "model_cfg")) is not None:
        _check_same_settings(model_cfg, architecture)
    file = read_clip_file(path)
    model = _random_clip(architecture, 0, quickgelu=bool(file.quickgelu))
    state = dict(file.state)
    _resize_stored_embedding(state, model.visual)
    check_file_fits(state, model.state_dict(), architecture)
    model.load_state_dict(state)
    if file.quickgelu is None and stored is None:
        _log_activation(path, architecture)
    return model


def _resize_stored_embedding(state: dict[str, Tensor], visual: nn.Module) -> None:
    """Resize in place the position embedding of a CLIP's state dict that was trained on squares of another size."""
    positions = _positions(visual)
    assert positions is not None
    name = f"visual.{positions.name}"
    cells = len(state[name]) - 1 if name in state and state[name].ndim == 2 else None
    if cells in (None, math.prod(positions.grid)):
        return
    side = math.isqrt(cells)
    if side * side != cells or cells == 0:
        raise ValueError(f"its position embedding is for {cells} cells, which are no square.")
    state[name] = resized_embedding(state[name].float(), (side, side), positions.grid, "edges")


def _prepared(
    visual: VisionTransformer | ModifiedResNet, parts: Collection[Part]
) -> VisionTransformer | ModifiedResNet:
    """Remove the layers of a visual tower, changed in place, that only an unused token passes."""
    if isinstance(visual, ModifiedResNet):
        if "token" not in parts:
            visual.attnpool = nn.Identity()
        return visual
    if "map" in parts:
        visual.output_tokens = True
    if "token" not in parts:
        visual.proj = None
    return visual


def _positions(visual: nn.Module) -> PositionEmbedding | None:
    """Return the position embedding of a visual tower; None for a ResNet without attention pooling."""
    assert isinstance(visual, VisionTransformer | ModifiedResNet)
    size = as_height_width(visual.image_size)
    if isinstance(visual, VisionTransformer):
        grid_of = partial(grid_of_patches, patch=visual.patch_size)
        return PositionEmbedding("positional_embedding", grid_of(*size), visual.patch_size[0], grid_of)
    if isinstance(visual.attnpool, nn.Identity):
        return None
    return PositionEmbedding("attnpool.positional_embedding", _grid_of_layer4(*size), RESNET_STRIDE, _grid_of_layer4)


def _grid_of_layer4(height: int, width: int) -> tuple[int, int]:
    # The first convolution rounds halves up; the poolings after it round down.
    return (height + 1) // 2 // (RESNET_STRIDE // 2), (width + 1) // 2 // (RESNET_STRIDE // 2)


def _log_activation(path: Path, architecture: str) -> None:
    used, other, name = "GELU", "QuickGELU", f"{architecture}-quickgelu"
    if architecture.endswith("-quickgelu"):
        used, other, name = other, used, architecture.removesuffix("-quickgelu")
    instead = f"use the architecture {name} for {other}" if name in known_architectures() else f"no {name} is known"
    LOGGER.info("%s: the activation of these weights is unknown: %s is used; %s", path, used, instead)


def _pixels_in_metadata(weights: Path) -> Mapping[str, Any]:
    metadata = read_metadata(weights)
    try:
        return {name: json.loads(metadata[name]) for name in ("mean", "std") if name in metadata}
    except ValueError:
        raise ValueError(f"The metadata of {weights} have a mean or std of pixels that is not JSON.") from None


def _check_same_settings(config: Mapping[str, Any], architecture: str) -> None:
    """Refuse a configuration that differs from that of the architecture, even if all shapes are equal."""
    if missing := {"vision_cfg", "text_cfg"} - config.keys():
        raise RuntimeError(f"its configuration has no {' and no '.join(sorted(missing))}.")
    with_quickgelu = f"{architecture}-quickgelu"
    name = with_quickgelu if config.get("quick_gelu") and with_quickgelu in open_clip.list_models() else architecture
    found, wanted = model_settings(config), model_settings(open_clip.get_model_config(name))
    for key in sorted((found.keys() | wanted.keys()) - {"vision_cfg.image_size"}):  # position embeddings are resized
        if (found.get(key) or None) != (wanted.get(key) or None):
            raise RuntimeError(f"it does not fit, its {key} is {found.get(key)} where {name} has {wanted.get(key)}.")


def _hub_configuration(weights: str) -> Mapping[str, Any]:
    """Read the configuration of a CLIP in a Hugging Face repository, downloading it unless it is in the Hub's cache."""
    file = download_pretrained_from_hf(weights.removeprefix(_HUB), filename="open_clip_config.json")
    return json.loads(Path(file).read_text(encoding="utf-8"))
