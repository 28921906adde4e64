"""Trunks of encoders: a CLIP's visual tower or a torchvision classifier without what a descriptor does not use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from progeo.models.backbones.open_clip import (
    ImageSize,
    as_height_width,
    empty_clip,
    load_clip,
    position_embedding_name,
    resolved_architecture,
)
from progeo.models.backbones.torchvision import CONVNETS, empty_convnet, load_convnet, native_image_size

Pooling = Literal["clip", "gem", "mean", "mean_linear"]


@dataclass(frozen=True)
class Backbone:
    """A trunk and what an encoder must know of it."""

    trunk: nn.Module
    """Images (B, 3, H, W) -> vectors (B, E) that CLIP pooled itself, else feature maps (B, C, h, w)."""
    architecture: str
    """Its name, with the activation that the weights turned out to need."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    features_dim: int
    """The dimension of descriptors where none is asked for: of CLIP's own features, or C."""
    pooling: Pooling
    """How descriptors are made of what the trunk gives."""


def build_backbone(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    pooling: Pooling | None = None,
    align_corners: bool = False,
    seed: int = 0,
) -> Backbone:
    """Build a backbone with weights: see `load_convnet` for the architectures in `CONVNETS`, `load_clip` for others.

    Args:
        architecture, weights, image_size, align_corners, seed: see there.
        pooling: `clip` leaves it to CLIP: the class token of a ViT, the attention pooling of a ResNet; `gem`, `mean`
            and `mean_linear` take feature maps. None is `clip` for a ViT, which allows no other, else `gem`.
    """
    if architecture in CONVNETS:
        size = as_height_width(image_size or native_image_size(architecture))
        trunk = load_convnet(architecture, weights, seed=seed)
        return Backbone(trunk, architecture, size, _last_channels(trunk), _checked(pooling or "gem", trunk))
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
    """Build a trunk without weights, on the meta device, to load a state dict into."""
    if architecture in CONVNETS:
        return empty_convnet(architecture)
    return clip_backbone(empty_clip(architecture, image_size, align_corners=align_corners), pooling)


def clip_backbone(clip: CLIP, pooling: Pooling) -> nn.Module:
    """The visual tower: it gives CLIP's own features (B, E), or for other pooling the map of layer4 (B, C, h, w)."""
    visual = clip.visual
    if isinstance(visual, ModifiedResNet) and pooling != "clip":
        visual.attnpool = nn.Identity()
    return visual


def feature_map_channels(backbone: nn.Module) -> int | None:
    """C of the feature map that a backbone gives, None for one that gives a vector."""
    return None if position_embedding_name(backbone) is not None else _last_channels(backbone)


def freeze_layers(backbone: nn.Module, names: Sequence[str]) -> None:
    """Stop training the named layers of a backbone, such as `conv1` or `transformer.resblocks.0`.

    Batch-norm statistics of a frozen layer still follow the data, as in the published training.

    Raises:
        ValueError: a name that no parameter bears.
    """
    for name in names:
        frozen = [p for key, p in backbone.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not frozen:
            raise ValueError(
                f"model.frozen names {name!r}, which is no layer of the backbone; "
                f"it has {', '.join(key for key, _ in backbone.named_children())}."
            )
        for parameter in frozen:
            parameter.requires_grad_(False)


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Let a ViT's blocks be computed once more for their gradient.

    Raises:
        ValueError: the backbone is no ViT.
    """
    if not isinstance(backbone, VisionTransformer):
        raise ValueError("training.gradient_checkpointing works for a ViT only: leave it out.")
    backbone.set_grad_checkpointing()


def _checked(pooling: Pooling, trunk: nn.Module) -> Pooling:
    """Refuse a pooling that a trunk does not allow."""
    is_vit, is_clip = isinstance(trunk, VisionTransformer), isinstance(trunk, (VisionTransformer, ModifiedResNet))
    allowed = ("clip",) if is_vit else get_args(Pooling) if is_clip else ("gem", "mean", "mean_linear")
    if pooling not in allowed:
        raise ValueError(f"The pooling of this backbone can be {' or '.join(allowed)}, got {pooling!r}.")
    return pooling


def _last_channels(trunk: nn.Module) -> int:
    return [module.out_channels for module in trunk.modules() if isinstance(module, nn.Conv2d)][-1]
