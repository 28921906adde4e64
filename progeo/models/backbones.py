"""Trunks of encoders: the visual tower of a CLIP model without what a descriptor does not use."""

from collections.abc import Sequence

from open_clip import CLIP
from open_clip.modified_resnet import ModifiedResNet
from torch import nn


def clip_backbone(clip: CLIP) -> nn.Module:
    """The visual tower: a ViT gives its projected class token (B, E), a ResNet the map of layer4 (B, C, h, w)."""
    visual = clip.visual
    if isinstance(visual, ModifiedResNet):
        visual.attnpool = nn.Identity()
    return visual


def feature_map_channels(backbone: nn.Module) -> int | None:
    """C of the feature map that a backbone gives, None for one that gives a vector."""
    return backbone.layer4[-1].conv3.out_channels if isinstance(backbone, ModifiedResNet) else None


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
