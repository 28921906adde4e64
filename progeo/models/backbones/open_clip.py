"""CLIP models through open_clip: named weights or explicitly random ones, at any input size."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from progeo.models.backbones.torchvision import CONVNETS
from progeo.models.clip_files import read_clip_file, said_beside
from progeo.models.state_dicts import check_file_fits
from progeo.models.weight_files.checkpoints import reason_of
from progeo.models.weight_files.tensor_files import read_metadata
from progeo.models.weight_files.unpickler import printable

LOGGER = logging.getLogger("progeo")
ImageSize = int | tuple[int, int]
ARCHITECTURE = "architecture"
"""Key in the metadata of a .safetensors file: what its weights are of, where that is known.

Beside it are `mean` and `std` of the pixels that they were trained with, each as JSON.
"""
RESNET_STRIDE = 32
_HUB = "hf-hub:"
NORMALIZATIONS = MappingProxyType(
    {
        "clip": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)


def load_clip(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    align_corners: bool = False,
    seed: int = 0,
) -> CLIP:
    """Build a CLIP model in eval mode, its position embedding resized to the image size.

    Args:
        architecture: a name of open_clip such as `RN50` or `ViT-B-16` (`ViT-B/16` is the same), or our `tiny-vit` and
            `tiny-resnet`.
        weights: an open_clip tag such as `openai` (QuickGELU is set to match the tag), `hf-hub:owner/name`, a local
            file (see `find_weights`; refused where it says that it is of another architecture), or `random`. Where a
            file does not say its activation, that of the architecture is taken, which the log says.
        image_size: pixels, one side of a square or (height, width); None keeps the architecture's own.
        align_corners: interpolate position embeddings between the centers of the corner cells, as published ProGEO
            does, instead of between cell edges.
        seed: of the `random` weights.

    Raises:
        ValueError: an unknown architecture or tag, or weights that do not fit.
    """
    architecture = plain_architecture(architecture)
    model = _random_clip(architecture, seed) if weights == "random" else _pretrained_clip(architecture, weights)
    if image_size is not None:
        resize_input(model.visual, as_height_width(image_size), align_corners=align_corners)
    return model.eval()


def plain_architecture(name: str) -> str:
    """The architecture of a plain CLIP as open_clip writes its name.

    Raises:
        ValueError: it is none, or an unknown one.
    """
    architecture = name.replace("/", "-")
    if architecture not in known_architectures():
        raise ValueError(
            f"model.architecture {architecture!r} is not known. Use a CLIP of open_clip, for example RN50, RN101, "
            f"ViT-B-16, ViT-B-32, tiny-resnet or tiny-vit, or a backbone of torchvision: {', '.join(CONVNETS)}."
        )
    settings = model_settings(open_clip.get_model_config(architecture))
    if any(settings.get(name) for name in ("custom_text", "text_cfg.hf_model_name", "vision_cfg.timm_model_name")):
        raise ValueError(
            f"model.architecture {architecture!r} is not a plain CLIP; use a ViT or RN architecture of open_clip."
        )
    return architecture


def known_architectures() -> list[str]:
    """The architectures of open_clip, and our own."""
    _register_own_architectures()
    return open_clip.list_models()


def empty_clip(architecture: str, image_size: ImageSize | None = None, *, align_corners: bool = False) -> CLIP:
    """Build a CLIP model without weights, on the meta device, to load a state dict into."""
    _register_own_architectures()
    with torch.device("meta"), _without_warnings():
        model = open_clip.create_model(architecture, load_weights=False, device="meta")
        if image_size is not None:
            resize_input(model.visual, as_height_width(image_size), align_corners=align_corners)
    return model.eval()


def resize_input(
    visual: VisionTransformer | ModifiedResNet, image_size: tuple[int, int], *, align_corners: bool
) -> None:
    """Resize the position embedding for inputs of (height, width) pixels, in place; see `load_clip`."""
    old_grid, new_grid = _own_grid(visual), _grid_of(visual, *image_size)
    visual.image_size = image_size
    owner: nn.Module = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
    if isinstance(visual, VisionTransformer):
        visual.grid_size = new_grid
    if new_grid != old_grid:
        resized = _resized_embedding(owner.positional_embedding.detach(), old_grid, new_grid, align_corners)
        owner.positional_embedding = nn.Parameter(resized)


def as_height_width(image_size: ImageSize) -> tuple[int, int]:
    """Write an image size as (height, width) in pixels."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < RESNET_STRIDE:
        raise ValueError(f"image_size must be at least {RESNET_STRIDE} pixels a side, got {height} x {width}.")
    return height, width


def resolved_architecture(architecture: str, clip: CLIP) -> str:
    """The architecture's name with the activation its weights turned out to need."""
    architecture = architecture.replace("/", "-")
    quick = any(isinstance(module, QuickGELU) for module in clip.modules())
    named = open_clip.get_model_config(architecture).get("quick_gelu", False)
    return f"{architecture}-quickgelu" if quick and not named else architecture


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings in a model's configuration as open_clip writes it, those included that it leaves to open_clip.

    Args:
        config: with the parts `vision_cfg` and `text_cfg`, whose settings become `vision_cfg.layers` and so on.

    Raises:
        TypeError: a setting that open_clip does not know.
    """
    settings = {"quick_gelu": False, **config}
    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        values = dataclasses.asdict(kind(**settings.pop(part)))
        settings |= {f"{part}.{name}": value for name, value in values.items()}
    return settings


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A digest of names and values: equal for equal weights, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def said_of_pixels(architecture: str, weights: str) -> Mapping[str, Any]:
    """The `mean` and `std` of the pixels that a CLIP's weights were trained with, as far as the weights say them.

    Args:
        architecture, weights: see `load_clip`, which must have read them.

    Raises:
        ValueError: a file that says them, but not in JSON.
    """
    architecture = architecture.replace("/", "-")
    if weights.startswith(_HUB):
        said = _hub_configuration(weights).get("preprocess_cfg") or {}
    elif weights in open_clip.list_pretrained_tags_by_model(architecture):
        said = open_clip.get_pretrained_cfg(architecture, weights)
    else:
        said = said_beside(Path(weights), "preprocess_cfg") or _pixels_in_metadata(Path(weights))
    return {name: said[name] for name in ("mean", "std") if said.get(name) is not None}


def position_embedding_name(visual: nn.Module) -> str | None:
    """The position embedding of a trunk that pools by attention and gives vectors; None of one that gives maps."""
    if isinstance(visual, VisionTransformer):
        return "positional_embedding"
    has_pooling = isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d)
    return "attnpool.positional_embedding" if has_pooling else None


def visual_features(visual: nn.Module, images: Tensor, *, align_corners: bool = False) -> Tensor:
    """Run a visual tower on images (B, 3, H, W) of any size, resizing its position embedding on the way."""
    name = position_embedding_name(visual)
    if name is None:
        return visual(images)
    if _grid_of(visual, *images.shape[2:]) == _own_grid(visual):
        return visual(images)
    return resized_features(visual, images, align_corners=align_corners)


def resized_features(visual: nn.Module, images: Tensor, *, align_corners: bool = False) -> Tensor:
    """Run a visual tower that has a position embedding on images (B, 3, H, W), resizing it even to its own size.

    To its own size it stays as it is, so that a graph for all sizes need not ask which one it is given. It is resized
    in float32, whatever the weights are.
    """
    name = position_embedding_name(visual)
    grid, embedding = _grid_of(visual, *images.shape[2:]), visual.get_parameter(name)
    resized = _resized_embedding(embedding.float(), _own_grid(visual), grid, align_corners).to(embedding.dtype)
    return functional_call(visual, {name: resized}, (images,))


def position_stride(visual: VisionTransformer | ModifiedResNet) -> int:
    """Pixels from one place of the position embedding to the next."""
    return visual.patch_size[0] if isinstance(visual, VisionTransformer) else RESNET_STRIDE


@functools.cache
def _register_own_architectures() -> None:
    open_clip.add_model_config(Path(__file__).parents[1] / "architectures")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep open_clip from warning that weights are random where that was asked for."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _random_clip(architecture: str, seed: int, *, quickgelu: bool = False) -> CLIP:
    with torch.random.fork_rng(devices=[]), _without_warnings():
        torch.manual_seed(seed)
        return open_clip.create_model(architecture, load_weights=False, force_quick_gelu=quickgelu)


def _pretrained_clip(architecture: str, weights: str) -> CLIP:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    from_hub = weights.startswith(_HUB)
    if not from_hub and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"model.weights {weights!r} is neither a file, nor hf-hub:owner/name, nor random, nor a tag of "
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
    except Exception as error:  # a file that is no checkpoint can fail in any way
        reason = reason_of(error, weights)
        if "Error(s) in loading" in reason:
            reason = printable(str(error).splitlines()[1].strip())
        if reason.startswith("Weights only load failed"):  # what PyTorch advises then is to run what is in the file
            reason = "it holds more than weights."
        raise ValueError(f"model.weights {weights!r} could not be loaded as {architecture}: {reason}") from None


def _clip_of_file(architecture: str, path: Path) -> CLIP:
    """A CLIP of the weights in a file, with the activation that the file says, else with that of the architecture."""
    said = read_metadata(path).get(ARCHITECTURE)
    if said not in (None, architecture):
        raise ValueError(f"it says that it is a {said}, give that as model.architecture.")
    if (model_cfg := said_beside(path, "model_cfg")) is not None:
        _check_same_settings(model_cfg, architecture)
    file = read_clip_file(path)
    model = _random_clip(architecture, 0, quickgelu=bool(file.quickgelu))
    state = dict(file.state)
    _resize_stored_embedding(state, model.visual)
    check_file_fits(state, model.state_dict(), architecture)
    model.load_state_dict(state)
    if file.quickgelu is None and said is None:
        _say_activation(path, architecture)
    return model


def _say_activation(path: Path, architecture: str) -> None:
    taken, other, name = "GELU", "QuickGELU", f"{architecture}-quickgelu"
    if architecture.endswith("-quickgelu"):
        taken, other, name = other, taken, architecture.removesuffix("-quickgelu")
    instead = f"the architecture {name} takes {other}" if name in known_architectures() else f"no {name} is known"
    LOGGER.info("%s: The file does not say its activation; %s is taken, %s.", path, taken, instead)


def _resize_stored_embedding(state: dict[str, Tensor], visual: nn.Module) -> None:
    """Resize the position embedding in a CLIP's state dict that was trained on squares of another size."""
    own = position_embedding_name(visual)
    name = f"visual.{own}"
    if name not in state or state[name].ndim != 2 or len(state[name]) == len(visual.get_parameter(own)):
        return
    cells = len(state[name]) - 1
    side = math.isqrt(cells)
    if side * side != cells or cells == 0:
        raise ValueError(f"its position embedding is for {cells} cells, which are no square.")
    state[name] = _resized_embedding(state[name].float(), (side, side), _own_grid(visual), False)


def _pixels_in_metadata(weights: Path) -> Mapping[str, Any]:
    said = read_metadata(weights)
    try:
        return {name: json.loads(said[name]) for name in ("mean", "std") if name in said}
    except ValueError:
        raise ValueError(f"The metadata of {weights} say a mean or std of pixels that is not JSON.") from None


def _check_same_settings(config: Mapping[str, Any], architecture: str) -> None:
    """Refuse a configuration that is another model than the architecture, be it of the same shapes."""
    if missing := {"vision_cfg", "text_cfg"} - config.keys():
        raise RuntimeError(f"its configuration says no {' and no '.join(sorted(missing))}.")
    with_quickgelu = f"{architecture}-quickgelu"
    name = with_quickgelu if config.get("quick_gelu") and with_quickgelu in open_clip.list_models() else architecture
    found, wanted = model_settings(config), model_settings(open_clip.get_model_config(name))
    for key in sorted((found.keys() | wanted.keys()) - {"vision_cfg.image_size"}):  # its embedding is resized
        if (found.get(key) or None) != (wanted.get(key) or None):
            raise RuntimeError(f"it does not fit, its {key} is {found.get(key)} where {name} has {wanted.get(key)}.")


def _hub_configuration(weights: str) -> Mapping[str, Any]:
    """What a repository of Hugging Face's hub says of its CLIP; once fetched, it is read from the hub's own cache."""
    file = download_pretrained_from_hf(weights.removeprefix(_HUB), filename="open_clip_config.json")
    return json.loads(Path(file).read_text(encoding="utf-8"))


def _own_grid(visual: VisionTransformer | ModifiedResNet) -> tuple[int, int]:
    """Rows and columns that the position embedding is for."""
    return _grid_of(visual, *as_height_width(visual.image_size))


def _grid_of(visual: VisionTransformer | ModifiedResNet, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of what the position embedding is added to, in images of this size."""
    if isinstance(visual, VisionTransformer):
        return height // visual.patch_size[0], width // visual.patch_size[1]
    # The first convolution rounds a half up, the poolings after it round down.
    return (height + 1) // 2 // (RESNET_STRIDE // 2), (width + 1) // 2 // (RESNET_STRIDE // 2)


def _resized_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], align_corners: bool
) -> Tensor:
    """Interpolate (1 + h w, C) to another grid, bicubically; the first token stands for the whole image and stays."""
    grid = embedding[1:].T.reshape(1, -1, *old_grid)
    # With align_corners, as published; without, as open_clip resizes its own checkpoints.
    resized = F.interpolate(grid, new_grid, mode="bicubic", align_corners=align_corners, antialias=not align_corners)
    return torch.cat([embedding[:1], resized.flatten(2)[0].T])
