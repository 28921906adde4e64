"""Backbones of timm: every network with a feature map or patch tokens, such as DINOv2, ConvNeXt and MobileNetV4."""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt, prod
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import (
    get_arch_pretrained_cfgs,
    load_model_config_from_hf,
    load_state_dict_from_hf,
)
from torch import Tensor, nn

from progeo.models.backbones.family import (
    Family,
    Features,
    Interpolation,
    Loaded,
    NetworkSpec,
    Part,
    PositionEmbedding,
    Traits,
)
from progeo.models.backbones.meta_run import meta_features, on_meta, remove_layers, unused_layers
from progeo.models.backbones.position_embedding import as_height_width, grid_of_patches, resize_positions
from progeo.models.state_dicts import check_file_fits, telling_name, with_batch_counts
from progeo.models.weight_files.checkpoints import load_weights, reason_of

_HUB = "hf-hub:"
_POSITIONS = "pos_embed"
_SAME_NETWORK = {"num_classes", "global_pool", "img_size", "dynamic_img_size"}
"""Arguments in the configuration of a repository that change neither layers nor weights."""


@dataclass(frozen=True)
class _Layout:
    """How the output of a network's `forward_features` is read, and which images it takes."""

    channels: int
    stride: int
    """Pixels per cell of the feature map."""
    first_patch: int | None
    """Tokens before those of the patches; None for an output that is a feature map."""
    has_class_token: bool
    channels_last: bool
    """The feature map is (B, h, w, C)."""
    has_positions: bool
    """It has a learned position embedding that can be resized."""
    side_multiple: int
    only_size: tuple[int, int] | None = None
    """Height and width if the network takes no other images."""


class Timm(Family):
    """Every network of timm with a feature map or patch tokens, under timm's names.

    The features are those of `forward_features`: patch tokens are rearranged into a map, and the token is the class
    token. Layers that the needed parts do not depend on, such as the head, are removed.
    """

    needs_prefix = True

    def knows(self, architecture: str) -> bool:
        """Return whether timm has an architecture of this name."""
        return timm.is_model(architecture)

    def default_aggregation(self, architecture: str) -> str:
        """Return `token` for a network with a class token, else `gem`."""
        return "token" if _layout(architecture).has_class_token else "gem"

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Build a network with weights, see `Family.load`.

        Weights are a tag of timm such as `lvd142m`, where `DEFAULT` is the first one, `hf-hub:owner/name`, or a file
        with the state dict of timm's complete network or in a format that timm converts, see `find_weights`.
        """
        _layout(wanted.architecture)
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = _build(wanted.architecture)
        else:
            network = _pretrained(wanted.architecture, weights)
        return Loaded(network, wanted.architecture, _finish(network, wanted))

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the network of `load` on the meta device, without weights, to load a state dict into.

        Buffers that state dicts do not hold have values.
        """
        with on_meta():
            network = _build(wanted.architecture)
            _finish(network, wanted)
        if not _fill_buffers(network):
            built = self.load(wanted, "random", seed=0).network
            for module, other in zip(network.modules(), built.modules(), strict=True):
                module._buffers |= {name: other._buffers[name] for name in module._non_persistent_buffers_set}
        return network

    def traits(self, network: Any) -> Traits:
        """Return what is known of a network."""
        layout: _Layout = network.layout
        return Traits(
            layout.channels,
            layout.channels if layout.has_class_token else None,
            layout.channels,
            stride=layout.stride,
            side_multiple=layout.side_multiple,
            only_size=layout.only_size,
            positions=_positions(network) if layout.has_positions else None,
        )

    def features(self, network: Any, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding, if it has one."""
        layout: _Layout = network.layout
        found = network.forward_features(images)
        if layout.first_patch is None:
            return Features(found.permute(0, 3, 1, 2) if layout.channels_last else found, None)
        patches = found[:, layout.first_patch :].mT
        feature_map = patches.unflatten(2, _cells(images.shape[2:], layout.stride))
        return Features(feature_map, found[:, 0] if layout.has_class_token else None)

    def interpolation(self, architecture: str) -> Interpolation:
        """Return `dinov2` for DINOv2 without registers; the code of DINOv2 with registers, and timm's, use `edges`."""
        return "dinov2" if "_dinov2" in architecture and "_reg" not in architecture else "edges"

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` of a tag or a repository; empty for other weights."""
        known = _configuration(architecture, weights)
        return {name: known[name] for name in ("mean", "std") if known.get(name) is not None}

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of a tag or a repository; None if it is not known, or the repository cannot be read."""
        try:
            return _configuration(architecture, weights).get("license")
        except (OSError, ValueError):  # no connection, or no such repository any more
            return None

    def usage(self, architecture: str, image_size: tuple[int, int], weights: str | None) -> str:
        """Return Python code that loads `backbone.safetensors` with timm, see `Family.usage`."""
        with on_meta():
            network = _build(architecture)
        layout = _layout(architecture)
        sized = ""
        if (layout.has_positions or layout.only_size) and image_size != _own_size(network):
            if not hasattr(network, "set_input_size"):
                raise ValueError(f"`format` backbone is not for {architecture} at another size than its own.")
            sized = f"network.set_input_size({image_size})\n"
        options = "".join(f", {name}={value}" for name, value in _options(architecture).items() if value)
        return (
            "import timm\n"
            "from safetensors.torch import load_file\n\n"
            f'network = timm.create_model("{architecture}", num_classes=0{options})\n'
            f"{sized}"
            'network.load_state_dict(load_file("backbone.safetensors"), strict=False)  # without its last layers\n'
            "# network.eval().forward_features(images) computes the features"
        )

    def checkpoint_gradients(self, network: Any) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`."""
        try:
            network.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise ValueError("`gradient_checkpointing` is not possible with this network of timm.") from None


def _fill_buffers(network: Any) -> bool:
    """Compute, in place, the buffers of a network on the meta device that state dicts do not hold.

    Returns whether timm can compute them all: those of a SwinV2 depend on buffers or weights on the meta device.
    """
    try:
        for module in network.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                for name in module._non_persistent_buffers_set:
                    if (buffer := module._buffers[name]) is not None:
                        module._buffers[name] = torch.empty_like(buffer, device="cpu")
                module.init_non_persistent_buffers()
    except NotImplementedError:  # values are copied from the meta device
        return False
    state = network.state_dict()
    return not any(buffer.is_meta for name, buffer in network.named_buffers() if name not in state)


def _build(architecture: str) -> Any:
    """Build a network without its classifier, of random weights, for images of its own size."""
    network = timm.create_model(architecture, num_classes=0, **_options(architecture)).eval()
    _accept_sizes(network)
    return network


def _accept_sizes(network: Any) -> None:
    """Let a network with a learned position embedding take images of any size, once the embedding is resized."""
    if isinstance(getattr(network, _POSITIONS, None), nn.Parameter) and hasattr(network, "patch_embed"):
        network.patch_embed.strict_img_size = False


@functools.cache
def _options(architecture: str) -> Mapping[str, Any]:
    """Return the arguments by which a network without a learned position embedding takes images of any size."""
    if "." in architecture:
        name, _, tag = architecture.partition(".")
        raise ValueError(f"`architecture` {architecture!r} has a tag: use `architecture` {name} and `weights` {tag}.")
    with on_meta():
        network = timm.create_model(architecture, num_classes=0)
    if not hasattr(network, "dynamic_img_size"):
        return {}
    return {"dynamic_img_size": getattr(network, _POSITIONS, None) is None}


def _cells(image_size: Sequence[int], stride: int) -> tuple[int, int]:
    """Return the rows and columns of the feature map."""
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def _own_size(network: Any) -> tuple[int, int]:
    """Return the image size that a network was built for."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return tuple(size or network.pretrained_cfg["input_size"][1:])


@functools.cache
def _layout(architecture: str) -> _Layout:
    """Find out on the meta device how the features of a network are read, and which images it takes.

    Raises:
        ValueError: a network without a feature map and without patch tokens.
    """
    with on_meta():
        network = _build(architecture)
    own = _own_size(network)
    with torch.no_grad():
        found = network.forward_features(torch.empty(1, 3, *own, device="meta"))
    stride = network.feature_info[-1]["reduction"]
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    if isinstance(found, Tensor) and found.ndim == 4:
        layout = _Layout(found.shape[3 if channels_last else 1], stride, None, False, channels_last, False, 1)
    else:
        first = found.shape[1] - prod(_cells(own, stride)) if isinstance(found, Tensor) and found.ndim == 3 else -1
        if first < 0 or first != (getattr(network, "num_prefix_tokens", None) or min(first, 1)):
            raise ValueError(f"`architecture` {architecture!r} of timm has neither a feature map nor patch tokens.")
        has_class_token = first > (getattr(network, "num_reg_tokens", 0) or 0)
        layout = _Layout(found.shape[2], stride, first, has_class_token, False, _has_positions(network, first), stride)
    network.layout = layout
    for multiple in sorted({1, layout.stride, 224}):
        if _takes_multiples(network, multiple):
            return replace(layout, side_multiple=multiple)
    return replace(layout, side_multiple=1, has_positions=False, only_size=own)


def _takes_multiples(network: Any, multiple: int) -> bool:
    """Return whether a network takes images of other sizes in multiples of some pixels."""
    rows, columns = (side // multiple + 1 + extra for side, extra in zip(_own_size(network), (2, 1), strict=True))
    size = (rows * multiple, columns * multiple)
    other = {}
    try:
        if network.layout.has_positions:
            positions = _positions(network)
            embedding = network.get_parameter(positions.name)
            old, new = (grid[0] * grid[1] for grid in (positions.grid, positions.grid_of(*size)))
            other[positions.name] = embedding.new_empty(1, embedding.shape[1] - old + new, embedding.shape[2])
        found = meta_features(Timm().features, network, size, other).map
    except Exception:  # anything can fail in a network that is built for one size
        return False
    return found is not None


def _has_positions(network: Any, num_prefix_tokens: int) -> bool:
    embedding = getattr(network, _POSITIONS, None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if not isinstance(embedding, nn.Parameter) or embedding.ndim != 3 or grid is None:
        return False
    return embedding.shape[1] - grid[0] * grid[1] in (0, num_prefix_tokens)


def _positions(network: Any) -> PositionEmbedding:
    patch = network.patch_embed
    return PositionEmbedding(
        _POSITIONS, tuple(patch.grid_size), patch.patch_size[0], partial(grid_of_patches, patch=tuple(patch.patch_size))
    )


@functools.cache
def _unused(architecture: str, parts: frozenset[Part]) -> frozenset[str]:
    """Name the layers that no needed part of the features depends on."""
    with on_meta():
        network = _build(architecture)
    network.layout = _layout(architecture)
    return frozenset(unused_layers(Timm().features, network, _own_size(network), parts))


def _finish(network: Any, wanted: NetworkSpec) -> tuple[int, int]:
    """Remove unused layers from a network and prepare it for the image size, in place; return that size."""
    network.layout = layout = _layout(wanted.architecture)
    remove_layers(network, _unused(wanted.architecture, frozenset(wanted.parts)))
    size = as_height_width(wanted.image_size or _own_size(network))
    if size == _own_size(network):
        return size
    if layout.has_positions:
        resize_positions(network, _positions(network), size, wanted.interpolation)
        network.patch_embed.set_input_size(img_size=size)
    elif layout.only_size is not None:
        try:
            network.set_input_size(img_size=size)
            network.layout = replace(layout, only_size=size)
            meta_features(Timm().features, network, size)
        except Exception:  # anything can fail in a network that is not made for this size
            raise ValueError(
                f"`image_size` of {wanted.architecture} cannot be {size[0]} x {size[1]}: use "
                f"{layout.only_size[0]} x {layout.only_size[1]}, or perhaps a multiple of it."
            ) from None
    return size


def _tags(architecture: str) -> dict[str, Any]:
    """Return timm's configurations of weights by tag, with `DEFAULT` for the first."""
    found = {
        name.partition(".")[2]: configuration
        for name, configuration in get_arch_pretrained_cfgs(architecture).items()
        if configuration.has_weights
    }
    return {"DEFAULT": next(iter(found.values()))} | found if found else {}


def _configuration(architecture: str, weights: str) -> Mapping[str, Any]:
    """Return timm's configuration of a tag or a repository; empty for other weights."""
    if weights.startswith(_HUB):
        return load_model_config_from_hf(weights.removeprefix(_HUB))[0]
    tags = _tags(architecture)
    return tags[weights].to_dict() if weights in tags else {}


def _pretrained(architecture: str, weights: str) -> Any:
    """Build a network with the weights of a tag, a repository or a file, for images of the size of the weights."""
    tags, from_hub = _tags(architecture), weights.startswith(_HUB)
    if not from_hub and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor hf-hub:owner/name, nor random, nor a tag of "
            f"{architecture} ({', '.join(tag for tag in tags if tag) or 'it has none'})."
        )
    try:
        if weights in tags:
            configuration = tags[weights].to_dict()
            network = timm.create_model(
                architecture, pretrained=True, pretrained_cfg=configuration, num_classes=0, **_options(architecture)
            ).eval()
            _accept_sizes(network)
            return network
        network = _build(architecture)
        if from_hub:
            state = _hub_state(architecture, weights.removeprefix(_HUB))
        else:
            state = load_weights(Path(weights), [telling_name(network.state_dict())])
        state = _converted(network, architecture, state)
    except Exception as error:  # a file that is not a state dict can fail in any way
        reason = reason_of(error, weights)
        raise ValueError(f"`weights` {weights!r} could not be loaded as {architecture}: {reason}.") from None
    expected = network.state_dict()
    with on_meta():
        whole = timm.create_model(architecture).state_dict()
    kept = {name: tensor for name, tensor in state.items() if name in expected or name not in whole}
    complete = with_batch_counts(kept, expected)
    check_file_fits(complete, expected, architecture)
    network.load_state_dict(complete)
    return network


def _hub_state(architecture: str, repository: str) -> dict[str, Tensor]:
    _, found, arguments = load_model_config_from_hf(repository)
    if found != architecture:
        raise ValueError(f"it holds a {found}.")
    if changed := sorted((arguments or {}).keys() - _SAME_NETWORK):
        raise ValueError(f"its network is changed by {', '.join(changed)}.")
    return load_state_dict_from_hf(repository)


def _converted(network: Any, architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert other programs' weights to timm's names, with timm's code; give the network the grid of their positions.

    The square grid of the weights is kept, so that only `_finish` resizes their position embedding.
    """
    if _layout(architecture).has_positions and _POSITIONS in state:
        patch, embedding = network.patch_embed, network.pos_embed
        side = isqrt(state[_POSITIONS].numel() // embedding.shape[2])  # the rows before the grid are few
        kept = embedding.shape[1] - patch.grid_size[0] * patch.grid_size[1]
        if (side, side) != tuple(patch.grid_size):
            network.pos_embed = nn.Parameter(embedding.new_empty(1, kept + side * side, embedding.shape[2]))
            patch.set_input_size(img_size=tuple(side * each for each in patch.patch_size))
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return convert(state, network) if convert else state
