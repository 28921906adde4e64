"""Import CosPlace, EigenPlaces and Divide&Classify: torchvision backbones in an `nn.Sequential`, layers by number."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from progeo.convert.translation import Choices, Foreign, head_name, tensor_named, translated_encoder
from progeo.models.backbones import Pooling
from progeo.models.backbones.open_clip import NORMALIZATIONS
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.backbones.torchvision import CONVNETS, empty_convnet
from progeo.models.encoder import EncoderSpec

_COSPLACE_IMAGE_SIZE = 512
_DIVIDE_AND_CLASSIFY_IMAGE_SIZE = 256


def read_cosplace(state: Mapping[str, Tensor], choices: Choices) -> Foreign:
    """Convert an encoder of CosPlace or EigenPlaces, which share their names: `backbone.<number>.*`, `aggregation.*`.

    Raises:
        ValueError: missing or unexpected keys, or tensors of another shape.
    """
    dim = len(tensor_named(state, "aggregation.3.weight", 2))
    size = choices.image_size or _COSPLACE_IMAGE_SIZE
    return _read(state, "CosPlace or EigenPlaces", pooling="gem", descriptor_dim=dim, image_size=size, head=head_name)


def read_divide_and_classify(state: Mapping[str, Tensor], choices: Choices) -> Foreign:
    """Convert the feature extractor of Divide&Classify: backbone (EfficientNet), mean pooling, linear layer, L2.

    Raises:
        ValueError: missing or unexpected keys, or tensors of another shape.
    """
    dim = len(tensor_named(state, "classifier.0.weight", 2))
    size = choices.image_size or _DIVIDE_AND_CLASSIFY_IMAGE_SIZE
    return _read(
        state,
        "Divide&Classify",
        pooling="mean_linear",
        descriptor_dim=dim,
        image_size=size,
        head=lambda ours: ours.replace("pooling.linear.", "classifier.0."),
    )


def _read(
    state: Mapping[str, Tensor],
    kind: str,
    *,
    pooling: Pooling,
    descriptor_dim: int,
    image_size: int | tuple[int, int],
    head: Callable[[str], str],
) -> Foreign:
    architecture, trunk = _trunk(state)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        architecture=architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=descriptor_dim,
        normalized=True,
        mean=mean,
        std=std,
        align_corners=False,
        pooling=pooling,
    )
    encoder, left_out = translated_encoder(spec, state, their_name=lambda ours: head(trunk(ours)))
    return Foreign(encoder, kind, left_out)


def _trunk(state: Mapping[str, Tensor]) -> tuple[str, Callable[[str], str]]:
    """Find the torchvision backbone that fits a state dict best, and the function from our names to its names."""
    if "backbone.0.bias" in state:
        family, flat = "vgg", True
    elif "backbone.0.weight" in state:
        family, flat = "resnet", False
    elif "backbone.0.0.weight" in state:
        family, flat = "efficientnet", True
    else:
        family, flat = "efficientnet", False
    best, best_name, most = "", partial(_numbered, layers=[], flat=False), -1.0
    for architecture in (name for name in CONVNETS if name.startswith(family)):
        trunk = empty_convnet(architecture)
        layers = [name for name, _ in trunk.named_children()]
        their_name = partial(_numbered, layers=layers, flat=flat)
        shapes = {their_name(f"backbone.{name}"): tensor.shape for name, tensor in trunk.state_dict().items()}
        alike = sum(name in state and state[name].shape == shape for name, shape in shapes.items())
        share = alike / max(len(shapes), sum(name.startswith("backbone.") for name in state))
        if share > most:
            best, best_name, most = architecture, their_name, share
        if share == 1:
            break
    return best, best_name


def _numbered(ours: str, layers: list[str], flat: bool) -> str:
    """Convert one of our names to that in an `nn.Sequential` of the classifier's children; if `flat`, of `features`."""
    room, _, name = ours.partition(".")
    if room != "backbone":
        return ours
    layer, _, rest = name.partition(".")
    return f"backbone.{rest}" if flat else f"backbone.{layers.index(layer)}.{rest}"
