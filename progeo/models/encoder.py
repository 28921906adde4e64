"""The image encoder: backbone, pooling and optional projection. Stage 2 trains it; it is evaluated and exported."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import open_clip
import torch
from torch import Tensor, nn

from progeo.models.aggregation import GeM, L2Norm, MeanLinear, MeanPool
from progeo.models.backbones import Pooling, build_backbone, empty_backbone, feature_map_channels
from progeo.models.backbones.open_clip import known_architectures
from progeo.models.backbones.position_embedding import RESNET_STRIDE, ImageSize, visual_features
from progeo.models.backbones.torchvision import CONVNETS
from progeo.models.pixel_statistics import chosen_statistics, own_statistics
from progeo.models.preprocessing import normalize_images, resize_image
from progeo.models.state_dicts import check_fits
from progeo.pixels import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to rebuild an encoder, except its weights; stored in `model.json`."""

    architecture: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    descriptor_dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    """How features are pooled into a descriptor, see `build_backbone`."""
    normalized: bool = True
    """Whether descriptors are L2-normalized to unit length."""
    align_corners: bool = False
    """Whether position embeddings are interpolated with `align_corners`, see `load_clip`."""
    pooled_dim: int | None = None
    """Descriptor dimension before a projection (such as PCA) to `descriptor_dim`; None without a projection."""
    text_weights: str | None = None
    """Weights of the CLIP of the same architecture whose text features share the space of the descriptors, or None.

    The value is a valid `weights` argument of `load_clip`; a file is given by its absolute path.
    """


class Encoder(nn.Module):
    """Image encoder (backbone, pooling, optional projection): normalized images (B, 3, H, W) -> descriptors (B, D)."""

    has_weights = True
    """Whether the encoder has weights, so that it can be saved, projected and put into a place index."""
    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.pooling = _build_pooling(spec, backbone)
        self.projection = _build_projection(spec)
        self.register_buffer("mean", torch.tensor(spec.mean, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, device="cpu"), persistent=False)

    @property
    def descriptor_dim(self) -> int:
        """Dimension D of a descriptor."""
        return self.spec.descriptor_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that `preprocess` resizes to; `forward` accepts any size of at least 32 pixels."""
        return self.spec.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D) of normalized images (B, 3, H, W) of at least 32 pixels a side."""
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < RESNET_STRIDE:
            raise ValueError(
                f"An encoder takes images (B, 3, H, W) of at least {RESNET_STRIDE} pixels a side, "
                f"got {tuple(images.shape)}."
            )
        images = images.contiguous(memory_format=torch.channels_last)
        features = visual_features(self.backbone, images, align_corners=self.spec.align_corners)
        return self.projection(self.pooling(features))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (..., 3, H, W), uint8 in 0..255 or float in 0..1, with this encoder's mean and std."""
        return normalize_images(images, self.mean, self.std)

    def preprocess(self, image: "Image | Tensor") -> Tensor:
        """Resize and normalize a PIL image or a uint8 tensor (3, H, W) for `forward`: float (3, height, width).

        The EXIF orientation of a PIL image is applied, as it is when an image is read from a file.
        """
        pixels = image if isinstance(image, Tensor) else pixels_of(image)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
            raise ValueError(
                f"preprocess takes a PIL image or a uint8 tensor (3, H, W), got {pixels.dtype} {tuple(pixels.shape)}."
            )
        return self.normalize(resize_image(pixels.to(self.mean.device), self.image_size))


def build_encoder(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    descriptor_dim: int | None = None,
    normalized: bool = True,
    normalization: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pooling: Pooling | None = None,
    align_corners: bool = False,
    seed: int = 0,
) -> Encoder:
    """Build an encoder for training, starting from the visual tower of a CLIP or from a torchvision backbone.

    Args:
        architecture, weights, image_size, pooling, align_corners: see `build_backbone`.
        descriptor_dim: D; None takes the dimension of CLIP's features or the channels of the feature map. Only the
            poolings `gem` and `mean_linear` allow another value.
        normalized: L2-normalize descriptors of `clip` pooling; all other poolings always do.
        normalization, mean, std: pixel statistics, see `pixel_statistics`.
        seed: seed of `random` weights and of the layers after the backbone.

    Raises:
        ValueError: unknown weights or settings that do not fit together, or a backbone that cannot be rebuilt from its
            architecture name.
    """
    chosen = chosen_statistics(normalization, mean, std)  # before weights are fetched
    backbone = build_backbone(
        architecture, weights, image_size, pooling=pooling, align_corners=align_corners, seed=seed
    )
    if backbone.pooling in ("clip", "mean") and descriptor_dim not in (None, backbone.features_dim):
        raise ValueError(
            f"The descriptors of {architecture} have {backbone.features_dim} dimensions, `descriptor_dim` cannot "
            f"be {descriptor_dim}. Leave it out."
        )
    has_texts = backbone.pooling == "clip" and weights != "random"
    pixels = chosen or own_statistics(architecture, weights)
    spec = EncoderSpec(
        architecture=backbone.architecture,
        image_size=backbone.image_size,
        descriptor_dim=descriptor_dim or backbone.features_dim,
        normalized=normalized or backbone.pooling != "clip",
        mean=pixels.mean,
        std=pixels.std,
        align_corners=align_corners,
        pooling=backbone.pooling,
        text_weights=_found_anywhere(weights, backbone.architecture) if has_texts else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec, backbone.network).to(memory_format=torch.channels_last)
    _check_restored(encoder)
    return encoder


def empty_encoder(spec: EncoderSpec) -> Encoder:
    """Build an encoder from its spec on the meta device, without weights."""
    backbone = empty_backbone(
        spec.architecture, spec.image_size, pooling=spec.pooling, align_corners=spec.align_corners
    )
    with torch.device("meta"):
        return Encoder(spec, backbone)


def restore_encoder(spec: EncoderSpec, state: dict[str, Tensor]) -> Encoder:
    """Build an encoder from its spec and load saved weights into it; it is in eval mode.

    Raises:
        ValueError: the weights do not fit; the message names the first that does not.
    """
    encoder = empty_encoder(spec)
    check_fits(state, encoder.state_dict(), spec.architecture)
    encoder.load_state_dict(state, assign=True)
    return encoder.to(memory_format=torch.channels_last).eval()


def projected(encoder: Encoder, weight: Tensor, bias: Tensor) -> Encoder:
    """Append a linear projection (such as PCA) to an encoder: `weight @ descriptor + bias`.

    Projected descriptors are L2-normalized if those of `encoder` are, and can no longer be compared with text features.

    Args:
        encoder: encoder of descriptors (B, P); not changed.
        weight: (D, P), where D is the dimension of the returned encoder's descriptors.
        bias: (D,).

    Raises:
        ValueError: the encoder already has a projection.
    """
    spec = encoder.spec
    if spec.pooled_dim is not None:
        raise ValueError(f"The descriptors are projected already, from {spec.pooled_dim} to {spec.descriptor_dim}.")
    changed = dataclasses.replace(spec, descriptor_dim=len(weight), pooled_dim=spec.descriptor_dim, text_weights=None)
    return restore_encoder(changed, {**encoder.state_dict(), "projection.0.weight": weight, "projection.0.bias": bias})


def spec_to_json(spec: EncoderSpec) -> dict[str, object]:
    """Convert a spec to plain values for a JSON file."""
    return dataclasses.asdict(spec)


@torch.no_grad()
def _check_restored(encoder: Encoder) -> None:
    """Refuse an encoder that its spec and weights do not restore, since its backbone differs from its architecture."""
    spec = encoder.spec
    side = 2 * max((RESNET_STRIDE, *getattr(encoder.backbone, "patch_size", ())))
    image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    try:
        wanted, found = encoder(image), restore_encoder(spec, encoder.state_dict())(image)
    except Exception as error:  # anything can fail in a backbone with another structure
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
    else:
        if wanted.shape != (1, spec.descriptor_dim):
            reason = f"an image gets {tuple(wanted.shape[1:])} numbers, not ({spec.descriptor_dim},)"
        elif wanted.equal(found):
            return
        else:
            reason = f"loaded again, its descriptors differ by {(wanted - found).abs().max():.2g}"
    raise ValueError(
        f"{spec.architecture} with these weights cannot be an encoder: {reason}. Use a plain ViT or RN architecture of "
        f"open_clip, or a backbone of torchvision."
    )


def _found_anywhere(weights: str, architecture: str) -> str:
    """Make the path of a weights file absolute; a tag stays as it is, and wins over a file of the same name."""
    is_tag = weights in open_clip.list_pretrained_tags_by_model(architecture)
    return str(Path(weights).absolute()) if Path(weights).is_file() and not is_tag else weights


def _build_pooling(spec: EncoderSpec, backbone: nn.Module) -> nn.Module:
    if spec.pooling == "clip":
        return L2Norm() if spec.normalized else nn.Identity()
    if spec.pooling == "mean":
        return MeanPool()
    if (channels := feature_map_channels(backbone)) is None:
        raise ValueError(f"The pooling of {spec.architecture} can be clip only, got {spec.pooling}.")
    return (GeM if spec.pooling == "gem" else MeanLinear)(channels, spec.pooled_dim or spec.descriptor_dim)


def _build_projection(spec: EncoderSpec) -> nn.Module:
    if spec.pooled_dim is None:
        return nn.Identity()
    linear = nn.Linear(spec.pooled_dim, spec.descriptor_dim)
    return nn.Sequential(linear, L2Norm() if spec.normalized else nn.Identity())


def spec_from_json(values: Mapping[str, Any]) -> EncoderSpec:
    """Parse a spec that `spec_to_json` of this version or an earlier one wrote; lists become tuples.

    Raises:
        ValueError: unknown fields, missing fields without a default, or invalid values.
    """
    values = {_RENAMED_FIELDS.get(name, name): value for name, value in values.items()}
    if unknown := values.keys() - _ALLOWED.keys():
        raise ValueError(f"An encoder has no {', '.join(sorted(unknown))}; its fields are {', '.join(_ALLOWED)}.")
    required = [field.name for field in dataclasses.fields(EncoderSpec) if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"The fields {', '.join(missing)} of an encoder are missing.")
    for name, value in values.items():
        if not _ALLOWED[name](value):
            raise ValueError(f"The {name} of an encoder cannot be {value!r}.")
    fields: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    return EncoderSpec(**fields)


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_color(value: Any) -> bool:
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(type(part) in (int, float) and math.isfinite(part) for part in value)


_RENAMED_FIELDS = MappingProxyType({"normalised": "normalized"})
"""Fields of `model.json` that were renamed: the name in earlier versions -> the current name."""
_ALLOWED: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "architecture": lambda value: value in CONVNETS or value in known_architectures(),
        "image_size": lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value)),
        "descriptor_dim": _is_count,
        "normalized": lambda value: type(value) is bool,
        "mean": _is_color,
        "std": lambda value: _is_color(value) and min(value) > 0,
        "align_corners": lambda value: type(value) is bool,
        "pooling": lambda value: value in get_args(Pooling),
        "pooled_dim": lambda value: value is None or _is_count(value),
        "text_weights": lambda value: value is None or isinstance(value, str),
    }
)
"""Check of the value in `model.json` of each field of `EncoderSpec`."""
