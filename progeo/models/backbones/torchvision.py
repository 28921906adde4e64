"""Backbones of torchvision, cut as in CosPlace, with pretrained, local or explicitly random weights."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG, get_model, get_model_weights

from progeo.models.backbones.family import Family, Features, ImageSize, Interpolation, Loaded, Part, Traits
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.state_dicts import check_file_fits, with_batch_counts
from progeo.models.weight_files.checkpoints import load_weights, reason_of

CONVNETS = ("vgg16", "resnet18", "resnet50", "resnet101", "resnet152", *(f"efficientnet_b{i}" for i in range(8)))


def load_convnet(architecture: str, weights: str, *, seed: int = 0) -> nn.Sequential:
    """Build a torchvision backbone in eval mode: images (B, 3, H, W) -> feature map (B, C, h, w).

    Layers have torchvision's names: `conv1` to `layer4` in a ResNet, `features.0` and so on in other architectures.

    Args:
        architecture: one of `CONVNETS`.
        weights: a torchvision tag such as `IMAGENET1K_V1` or `DEFAULT`, a local file with the classifier's state dict
            (see `find_weights`), or `random`.
        seed: seed of `random` weights.

    Raises:
        ValueError: an unknown tag, or weights that do not fit.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _without_classifier(get_model(architecture, weights=None))
    backbone = empty_convnet(architecture)
    expected = backbone.state_dict()
    found = _classifier_state(architecture, weights, expected)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(("fc.", "classifier."))}
    state = with_batch_counts(kept, expected)
    check_file_fits(state, expected, architecture)
    backbone.to_empty(device="cpu").load_state_dict(state)
    return backbone


def empty_convnet(architecture: str) -> nn.Sequential:
    """Build a backbone on the meta device, without weights, to load a state dict into."""
    with torch.device("meta"):
        return _without_classifier(get_model(architecture, weights=None))


def native_image_size(architecture: str) -> int:
    """Return the side in pixels of the square images that torchvision's default weights were validated on."""
    return get_model_weights(architecture).DEFAULT.transforms().crop_size[0]


def own_normalization(architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
    """Return the pixel `mean` and `std` that a tag's weights were trained with; empty if `weights` is not a tag."""
    tags = get_model_weights(architecture).__members__
    if weights not in tags:
        return {}
    pixels = tags[weights].transforms()
    return {"mean": pixels.mean, "std": pixels.std}


def _without_classifier(classifier: nn.Module) -> nn.Sequential:
    """Remove the average pooling and the classifier, and from a VGG also the last ReLU and max pooling."""
    backbone = nn.Sequential(OrderedDict(list(classifier.named_children())[:-2]))
    if isinstance(classifier, VGG):
        backbone.features = classifier.features[:-2]
    return backbone.eval()


def _classifier_state(architecture: str, weights: str, expected: Iterable[str]) -> Mapping[str, Tensor]:
    tags = get_model_weights(architecture).__members__
    if weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor random, nor a tag of {architecture} ({', '.join(tags)})."
        )
    try:
        if weights in tags:
            return tags[weights].get_state_dict(check_hash=True, weights_only=True)
        # The first name in a numbered layer: other networks, too, have the name of a first convolution.
        mark = next(name for name in expected if any(part.isdigit() for part in name.split(".")))
        return load_weights(Path(weights), [mark])
    except Exception as error:  # a file that is not a state dict can fail in any way
        reason = reason_of(error, weights)
        raise ValueError(f"`weights` {weights!r} could not be loaded as {architecture}: {reason}") from None


class Torchvision(Family):
    """Backbones of torchvision."""

    def knows(self, architecture: str) -> bool:
        """Return whether the architecture is one of `CONVNETS`."""
        return architecture in CONVNETS

    def default_aggregation(self, architecture: str) -> str:
        """Return `gem`."""
        return "gem"

    def load(
        self,
        architecture: str,
        weights: str,
        image_size: ImageSize | None,
        *,
        parts: Collection[Part],
        interpolation: Interpolation,
        seed: int,
    ) -> Loaded:
        """Load a network with `load_convnet`."""
        size = as_height_width(image_size or native_image_size(architecture))
        return Loaded(load_convnet(architecture, weights, seed=seed), architecture, size)

    def empty(
        self,
        architecture: str,
        image_size: ImageSize | None,
        *,
        parts: Collection[Part],
        interpolation: Interpolation,
    ) -> nn.Module:
        """Build a network with `empty_convnet`."""
        return empty_convnet(architecture)

    def traits(self, network: nn.Module) -> Traits:
        """Return the channels of the last convolution."""
        channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        return Traits(channels, None, channels, 32)

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Return the feature map."""
        return Features(network(images), None)

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` of a tag."""
        return own_normalization(architecture, weights)

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of a tag."""
        if weights not in get_model_weights(architecture).__members__:
            return None
        return "torchvision's code is BSD-3-Clause; its weights were trained on ImageNet, which has terms of its own"

    def usage(self, architecture: str, image_size: tuple[int, int], weights: str | None) -> str:
        """Return Python code that loads the backbone into a classifier."""
        return (
            "import torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f'classifier = torchvision.models.get_model("{architecture}")\n'
            'classifier.load_state_dict(load_file("backbone.safetensors"), strict=False)  # without its last layers'
        )
