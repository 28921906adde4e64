"""Backbones of timm: every network with a feature map or patch tokens, such as DINOv2, ConvNeXt and MobileNetV4."""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt, prod
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from msgspec import Meta
from timm.models import (
    get_arch_pretrained_cfgs,
    load_model_config_from_hf,
    load_state_dict_from_hf,
)
from torch import Tensor, nn

from progeo.json_files import converted
from progeo.models.backbones.family import (
    Family,
    Features,
    ImageSize,
    Interpolation,
    Loaded,
    NetworkSpec,
    Part,
    Traits,
)
from progeo.models.backbones.meta_run import on_meta, remove_layers, unused_layers
from progeo.models.backbones.position_embedding import MIN_SIDE, as_height_width
from progeo.models.backbones.timm_layouts import (
    POSITIONS,
    Layout,
    checkpoint_gradients,
    fill_buffers,
    measure_layout,
    own_size,
    positions_of,
    prepare_network,
    read_features,
    resize_network,
    set_grid,
)
from progeo.models.state_dicts import check_file_fits, telling_name, with_batch_counts
from progeo.models.weight_files.checkpoints import load_weights, reason_of

_HUB = "hf-hub:"
PRENORM = "_prenorm"
"""Ending of the names of vision transformers without their last layer norm, whose weights are those without it."""
_SAME_NETWORK = {"num_classes", "global_pool", "img_size", "dynamic_img_size"}
"""Arguments in the configuration of a repository that change neither layers nor weights."""
_KEEPS_POSITIONS = "_dinov2"
"""Part of the names of networks that keep the position embedding of their weights, see `Timm.configuration`."""
_Side = Annotated[int, Meta(ge=MIN_SIDE, le=2**12)]


@dataclass(frozen=True)
class _KeptPositions:
    """The configuration of a network that keeps the position embedding of its weights."""

    positions_size: tuple[_Side, _Side]
    """Height and width in pixels of the images that the embedding is for."""


class Timm(Family):
    """Every network of timm with a feature map or patch tokens, under timm's names.

    The features are those of `forward_features`: patch tokens are rearranged into a map, and the token is the class
    token. Layers that the needed parts do not depend on, such as the head, are removed. A vision transformer without
    its last layer norm, as BoQ takes DINOv2, has `_prenorm` after timm's name.
    """

    needs_prefix = True

    def knows(self, architecture: str) -> bool:
        """Return whether timm has an architecture of this name, or it is a variant of one."""
        if architecture.endswith(PRENORM):
            return timm.models.is_model_in_modules(_base(architecture), ["vision_transformer"])
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
        kept = None if wanted.configuration is None else kept_positions(own_size(network))
        return Loaded(network, wanted.architecture, _finish(network, replace(wanted, configuration=kept)), kept)

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the network of `load` on the meta device, without weights, to load a state dict into.

        Buffers that state dicts do not hold have values.
        """
        with on_meta():
            network = _build(wanted.architecture)
            _finish(network, wanted)
        fill_buffers(network, lambda: self.load(wanted, "random", seed=0).network)
        return network

    def traits(self, network: Any) -> Traits:
        """Return what is known of a network."""
        layout: Layout = network.layout
        return Traits(
            layout.channels,
            layout.channels if layout.has_class_token else None,
            layout.channels,
            stride=layout.stride,
            side_multiple=layout.side_multiple,
            only_size=layout.only_size,
            positions=positions_of(network),
        )

    def features(self, network: Any, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding, if it has one."""
        return read_features(network, images)

    def configuration(self, architecture: str, weights: str) -> Mapping[str, Any] | None:
        """Return the image size whose position embedding DINOv2 keeps; None for others, which are resized once for all.

        As in its authors' code, its embedding is resized from that of the weights for every size of images, not from
        that of `image_size`: images of 322 pixels are the same to a DINOv2 that was trained with 224.
        """
        if _KEEPS_POSITIONS not in architecture:
            return None
        with on_meta():
            return kept_positions(own_size(_build(architecture)))

    def check_rebuilt(self, architecture: str, configuration: Mapping[str, Any] | None) -> None:
        """Check that timm has a network of this name, and that it keeps a position embedding of this size, if any."""
        super().check_rebuilt(architecture, None)
        if configuration is not None:
            if _KEEPS_POSITIONS not in architecture:
                super().check_rebuilt(architecture, configuration)
            converted(configuration, _KeptPositions)

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

    def usage(
        self,
        architecture: str,
        image_size: tuple[int, int],
        weights: str | None,
        configuration: Mapping[str, Any] | None = None,
    ) -> str:
        """Return Python code that loads `backbone.safetensors` with timm, see `Family.usage`."""
        with on_meta():
            network = _build(architecture)
        layout = _layout(architecture)
        sized = ""
        if (layout.has_positions or layout.only_size) and image_size != own_size(network):
            if not hasattr(network, "set_input_size"):
                raise ValueError(f"`format` backbone is not for {architecture} at another size than its own.")
            sized = f"network.set_input_size({image_size})\n"
        options = "".join(f", {name}={value}" for name, value in _options(architecture).items() if value)
        changed = "network.norm = torch.nn.Identity()\n" if architecture.endswith(PRENORM) else ""
        return (
            f"import {'timm, torch' if changed else 'timm'}\n"
            "from safetensors.torch import load_file\n\n"
            f'network = timm.create_model("{_base(architecture)}", num_classes=0{options})\n'
            f"{changed}{sized}"
            'network.load_state_dict(load_file("backbone.safetensors"), strict=False)  # without its last layers\n'
            "# network.eval().forward_features(images) computes the features"
        )

    def checkpoint_gradients(self, network: Any) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`."""
        checkpoint_gradients(network)


def kept_positions(image_size: ImageSize) -> dict[str, Any]:
    """Return the configuration of a network that keeps the position embedding for images of this size in pixels."""
    return {"positions_size": list(as_height_width(image_size))}


def _base(architecture: str) -> str:
    """Return timm's name of the network that an architecture is or is a variant of."""
    return architecture.removesuffix(PRENORM)


def _build(architecture: str, **pretrained: Any) -> Any:
    """Build a network without its classifier, for images of its own size.

    Args:
        pretrained: arguments for weights of a tag; without them they are random.
    """
    network = timm.create_model(_base(architecture), num_classes=0, **_options(architecture), **pretrained).eval()
    if architecture.endswith(PRENORM):
        network.norm = nn.Identity()
    prepare_network(network)
    return network


@functools.cache
def _options(architecture: str) -> Mapping[str, Any]:
    """Return the arguments by which a network without a learned position embedding takes images of any size."""
    if "." in architecture:
        name, _, tag = architecture.partition(".")
        raise ValueError(f"`architecture` {architecture!r} has a tag: use `architecture` {name} and `weights` {tag}.")
    with on_meta():
        network = timm.create_model(_base(architecture), num_classes=0)
    if not hasattr(network, "dynamic_img_size"):
        return {}
    return {"dynamic_img_size": getattr(network, POSITIONS, None) is None}


@functools.cache
def _layout(architecture: str) -> Layout:
    """Return the layout of a network, see `measure_layout`."""
    with on_meta():
        network = _build(architecture)
    return measure_layout(network, architecture)


@functools.cache
def _unused(architecture: str, parts: frozenset[Part]) -> frozenset[str]:
    """Name the layers that no needed part of the features depends on."""
    with on_meta():
        network = _build(architecture)
    network.layout = _layout(architecture)
    return frozenset(unused_layers(Timm().features, network, own_size(network), parts))


def _finish(network: Any, wanted: NetworkSpec) -> tuple[int, int]:
    """Remove unused layers from a network and prepare it for the image size, in place; return that size."""
    network.layout = _layout(wanted.architecture)
    remove_layers(network, _unused(wanted.architecture, frozenset(wanted.parts)))
    size = as_height_width(wanted.image_size or own_size(network))
    kept = size if wanted.configuration is None else converted(wanted.configuration, _KeptPositions).positions_size
    resize_network(network, kept, wanted.interpolation, wanted.architecture)
    return size


def _tags(architecture: str) -> dict[str, Any]:
    """Return timm's configurations of weights by tag, with `DEFAULT` for the first."""
    found = {
        name.partition(".")[2]: configuration
        for name, configuration in get_arch_pretrained_cfgs(_base(architecture)).items()
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
            return _build(architecture, pretrained=True, pretrained_cfg=tags[weights].to_dict())
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
        whole = timm.create_model(_base(architecture)).state_dict()
    kept = {name: tensor for name, tensor in state.items() if name in expected or name not in whole}
    complete = with_batch_counts(kept, expected)
    check_file_fits(complete, expected, architecture)
    network.load_state_dict(complete)
    return network


def _hub_state(architecture: str, repository: str) -> dict[str, Tensor]:
    _, found, arguments = load_model_config_from_hf(repository)
    if found != _base(architecture):
        raise ValueError(f"it holds a {found}.")
    if changed := sorted((arguments or {}).keys() - _SAME_NETWORK):
        raise ValueError(f"its network is changed by {', '.join(changed)}.")
    return load_state_dict_from_hf(repository)


def _converted(network: Any, architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert other programs' weights to timm's names, with timm's code; give the network the grid of their positions.

    The square grid of the weights is kept, so that only `_finish` resizes their position embedding.
    """
    if _layout(architecture).has_positions and POSITIONS in state:
        network.layout, embedding = _layout(architecture), network.pos_embed
        grid = tuple(network.patch_embed.grid_size)
        side = isqrt(state[POSITIONS].numel() // embedding.shape[2])  # the rows before the grid are few
        if (side, side) != grid:
            count = embedding.shape[1] - prod(grid) + side * side
            network.pos_embed = nn.Parameter(embedding.new_empty(1, count, embedding.shape[2]))
            set_grid(network, (side * network.layout.stride, side * network.layout.stride))
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return convert(state, network) if convert else state
