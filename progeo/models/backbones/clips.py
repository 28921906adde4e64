"""Load CLIPs with pretrained, local or explicitly random weights, at any input size."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import (
    HUB,
    check_same_settings,
    hub_configuration,
    known_architectures,
    plain_architecture,
)
from progeo.models.backbones.clip_towers import positions_of, resize_input
from progeo.models.backbones.family import ImageSize, Interpolation
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import as_height_width, resized_embedding
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
INTERPOLATION = "interpolation"
"""Key of the interpolation that images were resized with, a `Resize`, in the metadata of a .safetensors file."""


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


def empty_clip(architecture: str, image_size: ImageSize | None = None) -> CLIP:
    """Build a CLIP model on the meta device, without weights, to load a state dict into."""
    known_architectures()
    with on_meta(), without_warnings("root"):
        model = open_clip.create_model(architecture, load_weights=False, device="meta")
        if image_size is not None:
            resize_input(model.visual, as_height_width(image_size), "edges")
    return model.eval()


def weights_anywhere(architecture: str, weights: str) -> str:
    """Make the path of a weights file absolute; a tag stays as it is, and wins over a file of the same name."""
    is_tag = weights in open_clip.list_pretrained_tags_by_model(architecture)
    return str(Path(weights).absolute()) if Path(weights).is_file() and not is_tag else weights


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


def random_tower(architecture: str, seed: int) -> VisionTransformer | ModifiedResNet:
    """Build the visual tower of `_random_clip`, with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return visual_tower(architecture)


def visual_tower(architecture: str) -> VisionTransformer | ModifiedResNet:
    """Build the visual tower of a plain CLIP as open_clip does, which builds it before anything else of the CLIP."""
    config = open_clip.get_model_config(architecture)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    return open_clip.model._build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def _random_clip(architecture: str, seed: int, *, quickgelu: bool = False) -> CLIP:
    with torch.random.fork_rng(devices=[]), without_warnings("root"):  # about the random weights requested
        torch.manual_seed(seed)
        return open_clip.create_model(architecture, load_weights=False, force_quick_gelu=quickgelu)


def _pretrained_clip(architecture: str, weights: str) -> CLIP:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    from_hub = weights.startswith(HUB)
    if not from_hub and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor hf-hub:owner/name, nor random, nor a tag of "
            f"{architecture} ({', '.join(tags) or 'it has none'})."
        )
    try:
        if from_hub:
            check_same_settings(hub_configuration(weights).get("model_cfg") or {}, architecture)
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
        check_same_settings(model_cfg, architecture)
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
    positions = positions_of(visual)
    assert positions is not None
    name = f"visual.{positions.name}"
    cells = len(state[name]) - 1 if name in state and state[name].ndim == 2 else None
    if cells in (None, math.prod(positions.grid)):
        return
    side = math.isqrt(cells)
    if side * side != cells or cells == 0:
        raise ValueError(f"its position embedding is for {cells} cells, which are no square.")
    state[name] = resized_embedding(state[name].float(), (side, side), positions.grid, "edges")


def _log_activation(path: Path, architecture: str) -> None:
    used, other, name = "GELU", "QuickGELU", f"{architecture}-quickgelu"
    if architecture.endswith("-quickgelu"):
        used, other, name = other, used, architecture.removesuffix("-quickgelu")
    instead = f"use the architecture {name} for {other}" if name in known_architectures() else f"no {name} is known"
    LOGGER.info("%s: the activation of these weights is unknown: %s is used; %s", path, used, instead)
