"""Convert encoders with a torchvision backbone in an `nn.Sequential`, whose layers are named by number."""

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from progeo.convert.converted_encoder import ConvertedEncoder, convert_encoder
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.weight_files.checkpoints import FoundWeights

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
RESNETS = (*_RESNETS, *(f"{name}_conv4" for name in _RESNETS))
"""With their last stage, and without it."""
_ARCHITECTURES = ("vgg16", *RESNETS, *(f"efficientnet_b{size}" for size in range(8)))
FIRST_LAYERS = ("backbone.0.weight", "backbone.0.0.weight", "backbone.0.0.0.weight")
"""Names of the weight of the first layer, for ResNets and VGGs, and for EfficientNets."""


def convert_numbered(
    found: FoundWeights,
    *,
    aggregation: str,
    descriptor_dim: int,
    image_size: int | tuple[int, int],
    head: Callable[[str], str],
) -> ConvertedEncoder:
    """Convert the encoder with the torchvision backbone that fits the weights best; for errors see `convert_encoder`.

    Args:
        found: the weights, `backbone.<number>.*` and those of the head.
        head: maps our parameter names of the head to those in the file.
    """
    architecture, backbone_name = find_backbone(found.state)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family="torchvision",
        architecture=architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=descriptor_dim,
        mean=mean,
        std=std,
        aggregation=aggregation,
    )
    return convert_encoder(spec, found, their_name=lambda ours: head(backbone_name(ours)))


def find_backbone(state: Mapping[str, Tensor], prefix: str = "backbone.") -> tuple[str, Callable[[str], str]]:
    """Find the torchvision backbone that fits a state dict best, and the function from our names to its names.

    Args:
        prefix: what the names of the numbered layers begin with.
    """
    families = {"0.bias": ("vgg", True), "0.weight": ("res", False), "0.0.weight": ("efficientnet", True)}
    family, flat = next((families[end] for end in families if f"{prefix}{end}" in state), ("efficientnet", False))

    def their_name(architecture: str) -> Callable[[str], str]:
        layers, _ = _layers_and_shapes(architecture)
        return partial(_numbered, prefix=prefix, layers=layers, flat=flat)

    architectures = [name for name in _ARCHITECTURES if name.startswith(family)]
    architecture = best_architecture(architectures, state, prefix, their_name)
    return architecture, their_name(architecture)


def best_architecture(
    architectures: Iterable[str],
    state: Mapping[str, Tensor],
    prefix: str,
    their_name: Callable[[str], Callable[[str], str]],
) -> str:
    """Return the torchvision backbone with most of the names and shapes of a state dict.

    Args:
        architectures: torchvision's names.
        prefix: what the names of the backbone begin with in the state dict.
        their_name: returns the function from our names to those in the state dict, for an architecture.
    """
    best, most = "", -1.0
    for architecture in architectures:
        _, our_shapes = _layers_and_shapes(architecture)
        names = their_name(architecture)
        shapes = {names(f"backbone.{name}"): shape for name, shape in our_shapes.items()}
        alike = sum(name in state and state[name].shape == shape for name, shape in shapes.items())
        share = alike / max(len(shapes), sum(name.startswith(prefix) for name in state))
        if share > most:
            best, most = architecture, share
        if share == 1:
            break
    return best


@functools.cache
def _layers_and_shapes(architecture: str) -> tuple[list[str], dict[str, torch.Size]]:
    """Return the names of the layers of a torchvision backbone, and the shapes of its parameters and buffers."""
    backbone = FAMILIES["torchvision"].empty(NetworkSpec(architecture))
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    return [name for name, _ in backbone.named_children()], shapes


def _numbered(ours: str, prefix: str, layers: list[str], flat: bool) -> str:
    """Convert one of our names to that in an `nn.Sequential` of the classifier's children; if `flat`, of `features`."""
    module, _, name = ours.partition(".")
    if module != "backbone":
        return ours
    layer, _, rest = name.partition(".")
    return f"{prefix}{rest}" if flat else f"{prefix}{layers.index(layer)}.{rest}"
