"""Backbones of torchvision, cut as in CosPlace, with pretrained, local or explicitly random weights."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG, get_model, get_model_weights

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
