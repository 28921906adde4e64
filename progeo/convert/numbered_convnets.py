"""Convert encoders with a torchvision backbone in an `nn.Sequential`, whose layers are named by number."""

import functools
from collections.abc import Callable, Mapping
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

_ARCHITECTURES = (
    "vgg16",
    *("resnet18", "resnet50", "resnet101", "resnet152", "resnet18_conv4", "resnet50_conv4", "resnet101_conv4"),
    *(f"efficientnet_b{size}" for size in range(8)),
)
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
    families = {"0.bias": ("vgg", True), "0.weight": ("resnet", False), "0.0.weight": ("efficientnet", True)}
    family, flat = next((families[end] for end in families if f"{prefix}{end}" in state), ("efficientnet", False))
    best, best_name, most = "", partial(_numbered, prefix=prefix, layers=[], flat=False), -1.0
    for architecture in (name for name in _ARCHITECTURES if name.startswith(family)):
        layers, our_shapes = _layers_and_shapes(architecture)
        their_name = partial(_numbered, prefix=prefix, layers=layers, flat=flat)
        shapes = {their_name(f"backbone.{name}"): shape for name, shape in our_shapes.items()}
        alike = sum(name in state and state[name].shape == shape for name, shape in shapes.items())
        share = alike / max(len(shapes), sum(name.startswith(prefix) for name in state))
        if share > most:
            best, best_name, most = architecture, their_name, share
        if share == 1:
            break
    return best, best_name


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
