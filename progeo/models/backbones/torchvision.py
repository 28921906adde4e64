"""Backbones of torchvision: classification networks up to their last feature map, and vision transformers."""

import functools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import isqrt
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VGG, DenseNet, MaxVit, VisionTransformer, get_model, get_model_weights, list_models

from progeo.models.backbones.attention import attend_batch_first
from progeo.models.backbones.family import (
    Family,
    Features,
    ImageSize,
    Loaded,
    NetworkSpec,
    PositionEmbedding,
    Traits,
)
from progeo.models.backbones.meta_run import measured_map, on_meta
from progeo.models.backbones.position_embedding import as_height_width, grid_of_patches, resize_positions
from progeo.models.state_dicts import check_file_fits, telling_name, with_batch_counts
from progeo.models.weight_files.checkpoints import load_weights, reason_of

_POSITIONS = "encoder.pos_embedding"
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""The beginning of `norm.1` and so on in the published weights of a DenseNet, where the network has `norm1`."""
_MAXVIT_MULTIPLE = 224
"""Stride 32 of a MaxViT's map, times the 7 rows of its windows."""


@dataclass(frozen=True)
class _Variant:
    """One of torchvision's networks with other last layers."""

    base: str
    """Torchvision's name of the network, whose weights it takes."""
    change: Callable[[nn.Sequential], None]
    """Changes the last layers of the backbone in place."""
    usage: str
    """Code that changes those of torchvision's `classifier`."""


def _add_neck(backbone: nn.Sequential) -> None:
    convolution = nn.Conv2d(960, 512, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    norm = nn.BatchNorm2d(512, eps=0.001, momentum=0.01)  # as all batch norms of a MobileNetV3
    backbone.neck = nn.Sequential(convolution, norm, nn.Hardswish(inplace=True))


def _remove_last_stage(backbone: nn.Sequential) -> None:
    del backbone.layer4


_NECK = """\
classifier.neck = torch.nn.Sequential(  # after its features
    torch.nn.Conv2d(960, 512, 1, bias=False), torch.nn.BatchNorm2d(512, eps=0.001), torch.nn.Hardswish()
)
"""
_VARIANTS = {
    "mobilenet_v3_large_512": _Variant("mobilenet_v3_large", _add_neck, _NECK),
    **{
        f"{base}_conv4": _Variant(base, _remove_last_stage, "classifier.layer4 = torch.nn.Identity()\n")
        for base in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
    },
}
"""Further architectures: the student of WAKD, with 512 channels, and ResNets up to `layer3`, as NetVLADs use them."""


class Torchvision(Family):
    """Every classification network of torchvision, up to its last feature map or its tokens.

    Layers have torchvision's names: `conv1` to `layer4` in a ResNet, `features.0` and so on in many others. The output
    of a vision transformer is normalized by its last layer norm; a VGG ends with its last convolution, as in CosPlace.
    """

    def knows(self, architecture: str) -> bool:
        """Return whether torchvision has a classification network of this name, or it is a variant of one."""
        return architecture in _VARIANTS or architecture in list_models(module=torchvision.models)

    def default_aggregation(self, architecture: str) -> str:
        """Return `token` for a vision transformer, else `gem`."""
        return "token" if isinstance(_meta_classifier(architecture), VisionTransformer) else "gem"

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Build a network with weights, see `Family.load`.

        A tag is one of torchvision, such as `IMAGENET1K_V1` or `DEFAULT`; a file holds the state dict of the complete
        classifier, see `find_weights`. A layer that only a variant has starts at random, unless the file has it.
        """
        architecture, image_size, own = (
            wanted.architecture,
            wanted.image_size,
            _native_side(wanted.architecture, weights),
        )
        if weights == "random":
            network = _random(architecture, image_size, own, seed)
        else:
            network = _pretrained(architecture, weights, image_size, own, seed)
        if isinstance(network, VisionTransformer):
            own = network.image_size
            network.image_size = as_height_width(image_size or own)
            resize_positions(network, _positions(network, own), network.image_size, wanted.interpolation)
        return Loaded(network, architecture, as_height_width(image_size or own))

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the network of `load` on the meta device, without weights, to load a state dict into."""
        own = _native_side(wanted.architecture)
        network = _on_meta(partial(_cut, wanted.architecture, wanted.image_size, own))
        if isinstance(network, VisionTransformer) and wanted.image_size is not None:
            _set_size(network, as_height_width(wanted.image_size))
        return network

    def traits(self, network: Any) -> Traits:
        """Return what is known of a network, found from its shapes on the meta device."""
        if isinstance(network, VisionTransformer):
            dim, patch = network.hidden_dim, network.patch_size
            positions = _positions(network, network.image_size)
            return Traits(dim, dim, dim, stride=patch, side_multiple=patch, positions=positions)
        only = getattr(network, "image_size", None)
        channels, stride = _measured(network.architecture, only)
        return Traits(channels, None, channels, stride=stride, only_size=only)

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding, if it has one."""
        if isinstance(network, VisionTransformer):
            patches = network.conv_proj(images)
            tokens = torch.cat([network.class_token.expand(images.shape[0], -1, -1), patches.flatten(2).mT], dim=1)
            tokens = network.encoder(tokens)
            return Features(tokens[:, 1:].mT.reshape(patches.shape), tokens[:, 0])
        return Features(network(images), None)

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` that a tag's weights were trained with; empty if `weights` is not a tag."""
        tags = _tags(architecture)
        if weights not in tags:
            return {}
        pixels = tags[weights].transforms()
        return {"mean": pixels.mean, "std": pixels.std}

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of a tag's weights; None if `weights` is not a tag."""
        tags = _tags(architecture)
        if weights not in tags:
            return None
        # Only weights that are not torchvision's own name a license, such as those of SWAG, which is not commercial.
        own = "torchvision's code is BSD-3-Clause; its weights were trained on ImageNet, which has terms of its own"
        return tags[weights].meta.get("license", own)

    def usage(
        self,
        architecture: str,
        image_size: tuple[int, int],
        weights: str | None,
        configuration: Mapping[str, Any] | None = None,
    ) -> str:
        """Return Python code that loads `backbone.safetensors` with torchvision, see `Family.usage`."""
        size = ""
        if isinstance(_meta_classifier(architecture), VisionTransformer):
            if image_size[0] != image_size[1]:
                raise ValueError(f"`format` backbone is for squares: torchvision builds no {architecture} for others.")
            size = f", image_size={image_size[0]}"
        elif isinstance(_meta_classifier(architecture), MaxVit):
            size = f", input_size={image_size}"
        change = _VARIANTS[architecture].usage if architecture in _VARIANTS else ""
        return (
            f"import {'torch, ' if change else ''}torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f'classifier = torchvision.models.get_model("{_base(architecture)}"{size})\n'
            f"{change}"
            'classifier.load_state_dict(load_file("backbone.safetensors"), strict=False)  # without its last layers'
        )

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Refuse: torchvision has no gradient checkpointing."""
        raise ValueError("`gradient_checkpointing` is not possible with torchvision: leave it out, or use timm.")


def _base(architecture: str) -> str:
    """Return torchvision's name of the network that an architecture is or is a variant of."""
    return _VARIANTS[architecture].base if architecture in _VARIANTS else architecture


def _tags(architecture: str) -> Mapping[str, Any]:
    return get_model_weights(_base(architecture)).__members__


def _native_side(architecture: str, weights: str = "DEFAULT") -> int:
    """Return the side in pixels of the square images that a tag's, else the default, weights were validated on."""
    tags = _tags(architecture)
    return tags[weights if weights in tags else "DEFAULT"].transforms().crop_size[0]


@functools.cache
def _meta_classifier(architecture: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the random weights of GoogLeNet
        return _on_meta(partial(get_model, _base(architecture), weights=None))


@functools.cache
def _measured(architecture: str, only_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the channels and the stride of the feature map of an architecture, see `measured_map`."""
    network = _on_meta(partial(_cut, architecture, only_size, _native_side(architecture)))
    return measured_map(Torchvision().features, network, only_size)


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device."""
    try:
        with on_meta():
            return build()
    except NotImplementedError:  # a RegNet computes its widths with tensors
        with torch.random.fork_rng(devices=[]):
            return build().to("meta")


def _cut(architecture: str, image_size: ImageSize | None, own: int) -> nn.Module:
    """Build a classifier without weights and remove its last layers; a vision transformer is for its own image size."""
    size = as_height_width(image_size or own)
    options: dict[str, Any] = {}
    if hasattr(_meta_classifier(architecture), "aux_logits"):
        raise ValueError(f"`architecture` {architecture!r} has side branches and is no backbone: use another network.")
    if isinstance(_meta_classifier(architecture), VisionTransformer):
        options = {"image_size": own}
    elif isinstance(_meta_classifier(architecture), MaxVit):
        if size[0] != size[1] or size[0] % _MAXVIT_MULTIPLE:
            raise ValueError(
                f"`image_size` of {architecture} must be a square with sides in multiples of {_MAXVIT_MULTIPLE}, "
                f"got {size[0]} x {size[1]}."
            )
        options = {"input_size": size}
    classifier = get_model(_base(architecture), weights=None, **options)
    if isinstance(classifier, VisionTransformer):
        attend_batch_first(classifier)
        classifier.heads = nn.Identity()
        classifier.image_size = (own, own)
        return classifier.eval()
    backbone = _without_classifier(classifier)
    if isinstance(classifier, MaxVit):
        backbone.image_size = size  # type: ignore[assignment]
    if architecture in _VARIANTS:
        _VARIANTS[architecture].change(backbone)
    backbone.architecture = architecture  # type: ignore[assignment]
    return backbone.eval()


def _without_classifier(classifier: nn.Module) -> nn.Sequential:
    """Take the layers before the average pooling and the classifier, and of a VGG not the last ReLU and max pooling."""
    layers = takewhile(
        lambda child: not isinstance(child[1], nn.AdaptiveAvgPool2d), list(classifier.named_children())[:-1]
    )
    backbone = nn.Sequential(
        OrderedDict(
            (name, nn.Sequential(*layer) if isinstance(layer, nn.ModuleList) else layer) for name, layer in layers
        )
    )
    if isinstance(classifier, VGG):
        backbone.features = classifier.features[:-2]
    if isinstance(classifier, DenseNet):  # it is a function there
        backbone.relu = nn.ReLU()
    return backbone


def _random(architecture: str, image_size: ImageSize | None, own: int, seed: int) -> nn.Module:
    """Build a network with random weights that follow the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _cut(architecture, image_size, own)


def _pretrained(architecture: str, weights: str, image_size: ImageSize | None, own: int, seed: int) -> nn.Module:
    """Build a network with the weights of a tag or file; a vision transformer is for the image size of the weights."""
    network = _on_meta(partial(_cut, architecture, image_size, own))
    expected = network.state_dict()
    found = _classifier_state(architecture, weights, expected)
    if isinstance(network, VisionTransformer) and _POSITIONS in found:
        cells = found[_POSITIONS].numel() // network.hidden_dim - 1
        side = isqrt(max(cells, 1)) * network.patch_size
        _set_size(network, (side, side))
        expected = network.state_dict()
    needed, given = _layers(expected), {name for name, _ in _meta_classifier(architecture).named_children()}
    kept = {name: tensor for name, tensor in found.items() if name.split(".")[0] not in given - needed}
    if added := needed - given - _layers(found):
        random = _random(architecture, image_size, own, seed).state_dict()
        kept |= {name: tensor for name, tensor in random.items() if name.split(".")[0] in added}
    state = with_batch_counts(kept, expected)
    check_file_fits(state, expected, architecture)
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def _layers(names: Collection[str]) -> set[str]:
    """Return the names of the children of a network that its parameters belong to."""
    return {name.split(".")[0] for name in names}


def _positions(network: VisionTransformer, image_size: tuple[int, int]) -> PositionEmbedding:
    grid_of = partial(grid_of_patches, patch=(network.patch_size, network.patch_size))
    return PositionEmbedding(_POSITIONS, grid_of(*image_size), network.patch_size, grid_of)


def _set_size(network: VisionTransformer, image_size: tuple[int, int]) -> None:
    """Replace the position embedding by one without values, on the meta device, for another image size."""
    rows, columns = grid_of_patches(*image_size, patch=(network.patch_size, network.patch_size))
    network.image_size = image_size
    network.encoder.pos_embedding = nn.Parameter(torch.empty(1, 1 + rows * columns, network.hidden_dim, device="meta"))


def _classifier_state(architecture: str, weights: str, expected: Collection[str]) -> Mapping[str, Tensor]:
    tags = _tags(architecture)
    if weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"`weights` {weights!r} is neither a file, nor random, nor a tag of {architecture} ({', '.join(tags)})."
        )
    try:
        if weights in tags:
            found = tags[weights].get_state_dict(check_hash=True, weights_only=True)
        else:
            found = load_weights(Path(weights), [telling_name(expected)])
        return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in found.items()}
    except URLError as error:
        raise ValueError(
            f"`weights` {weights!r} could not be loaded as {architecture}: {tags[weights].url} cannot be reached "
            f"({error.reason}). Fetch the file where there is a network, and name it in place of {weights}."
        ) from None
    except Exception as error:  # a file that is not a state dict can fail in any way
        reason = reason_of(error, weights)
        raise ValueError(f"`weights` {weights!r} could not be loaded as {architecture}: {reason}.") from None
