"""Trunks of torchvision's classifiers, cut as CosPlace cuts them: named weights, a local file or explicitly random."""

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
    """Build a trunk in eval mode: images (B, 3, H, W) -> feature map (B, C, h, w).

    Its layers have torchvision's names: `conv1` to `layer4` of a ResNet, `features.0` and so on of the others.

    Args:
        architecture: one of `CONVNETS`.
        weights: a tag of torchvision such as `IMAGENET1K_V1` or `DEFAULT`, a local file with the classifier's state
            dict (see `find_weights`), or `random`.
        seed: of the `random` weights.

    Raises:
        ValueError: an unknown tag, or weights that do not fit.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _trunk(get_model(architecture, weights=None))
    trunk = empty_convnet(architecture)
    expected = trunk.state_dict()
    found = _classifier_state(architecture, weights, expected)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(("fc.", "classifier."))}
    state = with_batch_counts(kept, expected)
    check_file_fits(state, expected, architecture)
    trunk.to_empty(device="cpu").load_state_dict(state)
    return trunk


def empty_convnet(architecture: str) -> nn.Sequential:
    """Build a trunk without weights, on the meta device, to load a state dict into."""
    with torch.device("meta"):
        return _trunk(get_model(architecture, weights=None))


def native_image_size(architecture: str) -> int:
    """Side in pixels of the squares that torchvision's own weights were validated on."""
    return get_model_weights(architecture).DEFAULT.transforms().crop_size[0]


def own_normalization(architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
    """The `mean` and `std` of the pixels that a tag's weights were trained with; empty for other weights."""
    tags = get_model_weights(architecture).__members__
    if weights not in tags:
        return {}
    pixels = tags[weights].transforms()
    return {"mean": pixels.mean, "std": pixels.std}


def _trunk(classifier: nn.Module) -> nn.Sequential:
    """Cut average pool and classifier, of a VGG also the last ReLU and max pool."""
    trunk = nn.Sequential(OrderedDict(list(classifier.named_children())[:-2]))
    if isinstance(classifier, VGG):
        trunk.features = classifier.features[:-2]
    return trunk.eval()


def _classifier_state(architecture: str, weights: str, expected: Iterable[str]) -> Mapping[str, Tensor]:
    tags = get_model_weights(architecture).__members__
    if weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"model.weights {weights!r} is neither a file, nor random, nor a tag of {architecture} ({', '.join(tags)})."
        )
    try:
        if weights in tags:
            return tags[weights].get_state_dict(check_hash=True, weights_only=True)
        # The first name in a numbered layer tells a classifier from other networks with a first convolution.
        mark = next(name for name in expected if any(part.isdigit() for part in name.split(".")))
        return load_weights(Path(weights), [mark])
    except Exception as error:  # a file that is no state dict can fail in any way
        reason = reason_of(error, weights)
        raise ValueError(f"model.weights {weights!r} could not be loaded as {architecture}: {reason}") from None
