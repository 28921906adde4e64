"""Load CLIPs of any configuration with pretrained, local or explicitly random weights, at any input size."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from torch import Tensor, nn

from progeo.models.backbones.attention_pool import attend_clip_batch_first
from progeo.models.backbones.clip_configurations import (
    FOLDER,
    HUB,
    UNNAMED,
    ClipConfiguration,
    brought_configuration,
    is_address,
    known_architectures,
    own_spelling,
    resolve_configuration,
)
from progeo.models.backbones.clip_towers import positions_of, resize_input
from progeo.models.backbones.family import ImageSize, Interpolation
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import as_height_width, resized_embedding
from progeo.models.clip_files import OPEN_CLIP_WEIGHTS, read_clip_file
from progeo.models.state_dicts import check_file_fits
from progeo.models.weight_files.checkpoints import reason_of
from progeo.models.weight_files.tensor_files import read_metadata
from progeo.printable import first_line, printable

LOGGER = logging.getLogger("progeo")
ARCHITECTURE = "architecture"
"""Key of the architecture, if it is known, in the metadata of a .safetensors file.

The keys `mean` and `std` hold the pixel statistics that the weights were trained with, each as JSON.
"""

_FEW_WEIGHTS = 2**28
"""Number of weights, in 1 GiB of memory, that are built before a file is found not to hold them."""


def load_clip(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    configuration: ClipConfiguration | None = None,
    interpolation: Interpolation = "edges",
    seed: int = 0,
) -> CLIP:
    """Build a CLIP in eval mode, with its position embedding resized to the image size.

    Args:
        architecture: an open_clip name such as `RN50` or `ViT-B-16` (`ViT-B/16` is the same), or our `tiny-vit` and
            `tiny-resnet`; or the address of the weights, to take whatever they are.
        weights: an open_clip tag such as `openai`, `hf-hub:owner/name`, a folder with a configuration of open_clip
            (`local-dir:path` is the same), a local file (see `find_weights`; refused if its metadata name another
            architecture), or `random`. If the activation of a file is not known, that of the architecture is used and
            logged.
        image_size: pixels, the side of a square or (height, width); None keeps the size of the configuration.
        configuration: of the CLIP; None takes that of architecture and weights, see `resolve_configuration`.
        interpolation: how the position embedding is resized to the image size.
        seed: seed of `random` weights.

    Returns:
        open_clip's own model: a `CLIP`, or a `CustomTextCLIP` or `CoCa`, which have the same methods; see
        `configuration_of`.

    Raises:
        ValueError: an unknown architecture or tag, or weights that do not fit.
    """
    architecture = own_spelling(architecture)
    resolved = configuration or resolve_configuration(architecture, weights)
    _check_weights(architecture, weights)
    try:
        is_random = weights == "random"
        model = random_clip(resolved, seed) if is_random else _pretrained_clip(architecture, weights, resolved)
    except Exception as error:  # a file that is not a checkpoint can fail in any way
        reason = _reason(error, weights)
        raise ValueError(f"`weights` {weights!r} could not be loaded as {architecture}: {reason}.") from None
    if image_size is not None:
        resize_input(model.visual, as_height_width(image_size), interpolation)
    return model.eval()


def empty_clip(configuration: ClipConfiguration, image_size: ImageSize | None = None) -> CLIP:
    """Build a CLIP on the meta device, without weights, to load a state dict into."""
    with on_meta():
        model = _build(configuration)
        if image_size is not None:
            resize_input(model.visual, as_height_width(image_size), "edges")
    return model.eval()


def random_clip(configuration: ClipConfiguration, seed: int) -> CLIP:
    """Build a CLIP with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(configuration)


def random_tower(configuration: ClipConfiguration, seed: int) -> nn.Module:
    """Build the visual tower of `random_clip`, with the same weights."""
    if "multimodal_cfg" in configuration.values:  # the text tower of a CoCa is built first
        return random_clip(configuration, seed).visual
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return visual_tower(configuration)


def visual_tower(configuration: ClipConfiguration) -> nn.Module:
    """Build a visual tower as open_clip does, which builds it before anything else of a CLIP but a CoCa.

    Raises:
        ValueError: open_clip cannot build it.
    """
    vision = dataclasses.replace(configuration.vision, timm_model_pretrained=False)
    with _refusals():
        tower = open_clip.model._build_vision_tower(configuration.values["embed_dim"], vision, configuration.quick_gelu)
    attend_clip_batch_first(tower)
    return tower


def weights_anywhere(architecture: str, weights: str) -> str:
    """Return the absolute path of the file of weights; a tag stays as it is, and wins over a file of its name."""
    path = Path(weights.removeprefix(FOLDER))
    is_tag = weights in open_clip.list_pretrained_tags_by_model(architecture)
    return str(_weights_file(path).absolute()) if path.exists() and not is_tag else weights


@contextmanager
def without_hub_code() -> Iterator[None]:
    """Let transformers refuse what needs the code of a repository or folder, instead of asking whether to run it."""
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _build(configuration: ClipConfiguration) -> CLIP:
    """Build the model that open_clip builds of a configuration, with random weights, without fetching any."""
    values: dict[str, Any] = {**configuration.values, "vision_cfg": {**configuration.values["vision_cfg"]}}
    values["vision_cfg"]["timm_model_pretrained"] = False
    has_own_text = values.pop("custom_text", False)
    if configuration.text.hf_model_name is not None:
        values["text_cfg"] = {**values["text_cfg"], "hf_model_pretrained": False}
        has_own_text = True
    kind = open_clip.CLIP
    if has_own_text:
        kind = open_clip.CoCa if "multimodal_cfg" in values else open_clip.CustomTextCLIP
    with _refusals(), without_hub_code() if configuration.text.hf_model_name else nullcontext():
        model = kind(**values)
    attend_clip_batch_first(model)
    model.configuration = configuration
    return model


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn any error of open_clip about a configuration, which may be a stranger's, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = first_line(error, type(error).__name__)
        raise ValueError(f"open_clip cannot build a CLIP of this configuration: {reason}.") from None


def _check_weights(architecture: str, weights: str) -> None:
    """Refuse weights that are not there."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights == "random" or weights in tags or weights.startswith(HUB):
        return
    if not Path(weights.removeprefix(FOLDER)).exists():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor a folder, nor hf-hub:owner/name, nor random, nor a tag of "
            f"{architecture} ({', '.join(tags) or 'it has none'})."
        )


def _pretrained_clip(architecture: str, weights: str, configuration: ClipConfiguration) -> CLIP:
    if weights in open_clip.list_pretrained_tags_by_model(architecture):
        return _downloaded(configuration, download_pretrained(open_clip.get_pretrained_cfg(architecture, weights)))
    if weights.startswith(HUB):
        file = Path(download_pretrained_from_hf(weights.removeprefix(HUB)))
        _check_size(configuration, file)
        return _downloaded(configuration, str(file))
    file = _weights_file(Path(weights.removeprefix(FOLDER)))
    _check_size(configuration, file)
    return _clip_of_file(architecture, file, configuration)


def _check_size(configuration: ClipConfiguration, file: Path) -> None:
    """Refuse a configuration of more weights than a file can hold, before they take memory."""
    number = sum(weight.numel() for weight in empty_clip(configuration).parameters())
    if number > max(_FEW_WEIGHTS, file.stat().st_size):
        raise ValueError(f"its configuration is of {number:,} weights, more than {file.name} can hold")


def _downloaded(configuration: ClipConfiguration, path: str) -> CLIP:
    model = random_clip(configuration, 0)
    load_checkpoint(model, path, weights_only=True)
    return model


def _weights_file(path: Path) -> Path:
    """Return the file of weights in a folder of open_clip, or the file itself."""
    if path.is_file():
        return path
    found = [path / name for name in OPEN_CLIP_WEIGHTS if (path / name).is_file()]
    if not found:
        raise ValueError(f"{path} is a folder without {' or '.join(OPEN_CLIP_WEIGHTS)}")
    return found[0]


def _clip_of_file(architecture: str, path: Path, configuration: ClipConfiguration) -> CLIP:
    """Build a CLIP from a file of weights, with the activation of OpenAI's files, else of the configuration."""
    stored = read_metadata(path).get(ARCHITECTURE)
    if stored not in (None, architecture, UNNAMED) and not is_address(architecture):
        raise ValueError(f"by its metadata it is a {stored}: give that as `architecture`.")
    state, is_of_openai = read_clip_file(path)
    model = random_clip(configuration.with_quick_gelu(True) if is_of_openai else configuration, 0)
    state = _as_named_here(state, model)
    _resize_stored_embedding(state, model.visual)
    check_file_fits(state, model.state_dict(), architecture)
    model.load_state_dict(state)
    if not is_of_openai and stored is None and brought_configuration(str(path)) is None:
        _log_activation(path, architecture)
    return model


def _as_named_here(state: Mapping[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """Rename the weights of a CLIP of another program, or of one whose text tower has other names, to a model's."""
    found = dict(convert_state_dict(model, dict(state)))
    if hasattr(model, "text") and "positional_embedding" in found:
        found = open_clip.model.convert_to_custom_text_state_dict(found)
    for name in ("logit_scale", "logit_bias"):
        if name in found and getattr(model, name, None) is not None:
            found[name] = found[name].reshape(getattr(model, name).shape)
    return found


def _resize_stored_embedding(state: dict[str, Tensor], visual: nn.Module) -> None:
    """Resize in place the position embedding of a CLIP's state dict that was trained on squares of another size."""
    positions = positions_of(visual)
    if positions is None or positions.name is None:
        return
    name, own = f"visual.{positions.name}", visual.get_parameter(positions.name)
    if name not in state or state[name].ndim != own.ndim:
        return
    cells = state[name].shape[-2] - (own.shape[-2] - math.prod(positions.grid))
    if cells == math.prod(positions.grid):
        return
    side = math.isqrt(cells)
    if side * side != cells or cells == 0:
        raise ValueError(f"its position embedding is for {cells} cells, which are no square.")
    state[name] = resized_embedding(state[name].float(), (side, side), positions.grid, "edges")


def _reason(error: Exception, weights: str) -> str:
    reason = reason_of(error, weights).rstrip(".")
    if "Error(s) in loading" in reason:
        return printable(str(error).splitlines()[1].strip().rstrip("."))
    if reason.startswith("Weights only load failed"):  # PyTorch's message advises to run the code in the file
        return "it holds more than weights"
    return reason


def _log_activation(path: Path, architecture: str) -> None:
    used, other, name = "GELU", "QuickGELU", f"{architecture}-quickgelu"
    if architecture.endswith("-quickgelu"):
        used, other, name = other, used, architecture.removesuffix("-quickgelu")
    instead = f"use the architecture {name} for {other}" if name in known_architectures() else f"no {name} is known"
    LOGGER.info("%s: the activation of these weights is unknown: %s is used; %s", path, used, instead)
