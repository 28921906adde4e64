"""Backbones of encoders: the visual tower of a CLIP, or a torchvision classifier without its last layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from progeo.models.backbones.open_clip import empty_clip, load_clip, resolved_architecture
from progeo.models.backbones.position_embedding import ImageSize, as_height_width, position_embedding_name
from progeo.models.backbones.torchvision import CONVNETS, empty_convnet, load_convnet, native_image_size

Pooling = Literal["clip", "gem", "mean", "mean_linear"]


@dataclass(frozen=True)
class Backbone:
    """A backbone network with the properties that an encoder needs."""

    network: nn.Module
    """Network: images (B, 3, H, W) -> vectors (B, E) with `clip` pooling, else feature maps (B, C, h, w)."""
    architecture: str
    """Architecture name, ending in `-quickgelu` where the weights were trained with that activation."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    features_dim: int
    """Default dimension of descriptors: that of CLIP's features for the poolings `clip` and `gem` of a CLIP, else C."""
    pooling: Pooling
    """How the output of the network is pooled into descriptors."""


def build_backbone(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    pooling: Pooling | None = None,
    align_corners: bool = False,
    seed: int = 0,
) -> Backbone:
    """Build a backbone with weights, with `load_convnet` for an architecture in `CONVNETS` and `load_clip` for others.

    Args:
        architecture, weights, image_size, align_corners, seed: see `load_convnet` and `load_clip`.
        pooling: `clip` uses CLIP's own pooling: the class token of a ViT, the attention pooling of a ResNet; `gem`,
            `mean` and `mean_linear` pool feature maps. None is `clip` for a ViT, which allows no other, else `gem`.

    Raises:
        ValueError: see `load_convnet` and `load_clip`; or a pooling that the backbone does not support.
    """
    if architecture in CONVNETS:
        size = as_height_width(image_size or native_image_size(architecture))
        network = load_convnet(architecture, weights, seed=seed)
        return Backbone(network, architecture, size, _last_channels(network), _checked(pooling or "gem", network))
    clip = load_clip(architecture, weights, image_size, align_corners=align_corners, seed=seed)
    pooling = _checked(pooling or ("clip" if isinstance(clip.visual, VisionTransformer) else "gem"), clip.visual)
    return Backbone(
        clip_backbone(clip, pooling),
        resolved_architecture(architecture, clip),
        as_height_width(clip.visual.image_size),
        _last_channels(clip.visual) if pooling in ("mean", "mean_linear") else clip.visual.output_dim,
        pooling,
    )


def empty_backbone(
    architecture: str, image_size: ImageSize | None = None, *, pooling: Pooling = "gem", align_corners: bool = False
) -> nn.Module:
    """Build a backbone on the meta device, without weights, to load a state dict into."""
    if architecture in CONVNETS:
        return empty_convnet(architecture)
    return clip_backbone(empty_clip(architecture, image_size, align_corners=align_corners), pooling)


def clip_backbone(clip: CLIP, pooling: Pooling) -> nn.Module:
    """Take the visual tower of a CLIP as a backbone; without `clip` pooling, a ResNet's attention pooling is removed.

    Returns:
        Images -> CLIP's features (B, E), or the feature map of layer4 (B, C, h, w). It is the module of `clip` itself,
        changed in place.
    """
    visual = clip.visual
    if isinstance(visual, ModifiedResNet) and pooling != "clip":
        visual.attnpool = nn.Identity()
    return visual


def feature_map_channels(backbone: nn.Module) -> int | None:
    """Return the number of channels of a backbone's feature map, or None if it outputs vectors."""
    return None if position_embedding_name(backbone) is not None else _last_channels(backbone)


def freeze_layers(backbone: nn.Module, names: Sequence[str]) -> None:
    """Freeze the named layers of a backbone, such as `conv1` or `transformer.resblocks.0`.

    Batch-norm running statistics of a frozen layer are still updated in training, as in the published training.

    Raises:
        ValueError: a name that matches no parameter.
    """
    for name in names:
        frozen = [p for key, p in backbone.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not frozen:
            raise ValueError(
                f"`frozen` has {name!r}, which is no layer of the backbone; "
                f"it has {', '.join(key for key, _ in backbone.named_children())}."
            )
        for parameter in frozen:
            parameter.requires_grad_(False)


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Enable gradient checkpointing: recompute the blocks of a ViT in the backward pass, which saves memory.

    Raises:
        ValueError: the backbone is not a ViT.
    """
    if not isinstance(backbone, VisionTransformer):
        raise ValueError("`gradient_checkpointing` works for a ViT only: leave it out.")
    backbone.set_grad_checkpointing()


def _checked(pooling: Pooling, network: nn.Module) -> Pooling:
    """Return the pooling, or refuse one that the backbone does not support."""
    is_vit, is_clip = isinstance(network, VisionTransformer), isinstance(network, (VisionTransformer, ModifiedResNet))
    allowed = ("clip",) if is_vit else get_args(Pooling) if is_clip else ("gem", "mean", "mean_linear")
    if pooling not in allowed:
        raise ValueError(f"The pooling of this backbone can be {' or '.join(allowed)}, got {pooling!r}.")
    return pooling


def _last_channels(network: nn.Module) -> int:
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
