"""The image encoder: backbone, aggregation and optional projection. Stage 2 trains it; it is evaluated and exported."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from progeo.image_files import Resize
from progeo.json_files import converted
from progeo.models.aggregation import (
    AGGREGATIONS,
    L2Norm,
    aggregation_dim,
    build_aggregation,
    filled_options,
    find_aggregation,
    limited_traits,
)
from progeo.models.backbones import FAMILIES, empty_traits, find_family
from progeo.models.backbones.family import Features, ImageSize, Interpolation, NetworkSpec
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.position_embedding import (
    as_height_width,
    check_sides,
    resized_embedding,
    sample_size,
    sized_features,
)
from progeo.models.pixel_statistics import chosen_statistics, pixel_statistics
from progeo.models.preprocessing import normalize_images, resize_image
from progeo.models.state_dicts import check_fits
from progeo.pixels import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image

_Side = Annotated[int, Meta(ge=1, le=2**16)]
_MAX_IMAGE_PX = 2**26
"""Maximum pixels of images, about 8192 x 8192: some networks compute tables of numbers for every cell of an image."""
_Dim = Annotated[int, Meta(ge=1, lt=2**31)]
_Mean = Annotated[float, Meta(gt=-1e6, lt=1e6)]
_Std = Annotated[float, Meta(gt=0, lt=1e6)]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to rebuild an encoder, except its weights; stored in `model.json`."""

    family: str
    """Family of the backbone, a row of `FAMILIES`."""
    architecture: str
    """The family's own name."""
    image_size: tuple[_Side, _Side]
    """Height and width in pixels."""
    descriptor_dim: _Dim
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    aggregation: str
    """How features are aggregated into a descriptor, a row of `AGGREGATIONS`."""
    aggregation_options: dict[str, Any] = field(default_factory=dict)
    """Options of the aggregation; missing ones have their defaults."""
    normalized: bool = True
    """Whether descriptors are L2-normalized to unit length."""
    interpolation: Interpolation = "edges"
    """How the position embedding is resized for other image sizes."""
    resize: Resize = "bilinear"
    """Interpolation by which images are resized, always with antialiasing."""
    pooled_dim: _Dim | None = None
    """Descriptor dimension before a projection (such as PCA) to `descriptor_dim`; None without a projection."""
    text_weights: str | None = None
    """Weights of the CLIP of the same configuration whose text features share the space of the descriptors, or None.

    The value is a valid `weights` argument of `load_clip`; a file is given by its absolute path.
    """
    configuration: dict[str, Any] | None = None
    """What decides the backbone beside its name, see `Family.configuration`; None takes that of the name."""


class Encoder(nn.Module):
    """Image encoder: normalized images (B, 3, H, W) -> backbone -> aggregation -> projection, if any: (B, D).

    Raises:
        ValueError: the backbone or the aggregation does not take images of its size.
    """

    has_weights = True
    """Whether the encoder has weights, so that it can be saved, projected and put into a place index."""
    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.family = FAMILIES[spec.family]
        options = filled_options(spec.aggregation, spec.aggregation_options)
        self.traits = limited_traits(spec.aggregation, self.family.traits(backbone), options)
        check_sides("`image_size`", *spec.image_size, self.traits)
        self.backbone = backbone
        self.memory_format = _memory_format(backbone)
        self.aggregation = build_aggregation(
            spec.aggregation,
            self.traits,
            spec.pooled_dim or spec.descriptor_dim,
            architecture=spec.architecture,
            **options,
        )
        self.projection = nn.Identity() if spec.pooled_dim is None else _projection(spec)
        self.register_buffer("mean", torch.tensor(spec.mean, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, device="cpu"), persistent=False)

    @property
    def descriptor_dim(self) -> int:
        """Dimension D of a descriptor."""
        return self.spec.descriptor_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that `preprocess` resizes to; `forward` accepts all sizes that `traits` allow."""
        return self.spec.image_size

    @property
    def resize(self) -> Resize:
        """Interpolation by which images are resized, always with antialiasing."""
        return self.spec.resize

    @overload
    def forward(self, images: Tensor, *, with_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, *, with_features: Literal[True]) -> tuple[Tensor, Features]: ...
    def forward(self, images: Tensor, *, with_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Compute descriptors (B, D) of normalized images (B, 3, H, W) of at least 32 pixels a side.

        Args:
            with_features: return the features of the backbone, too.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"An encoder takes images (B, 3, H, W), got {tuple(images.shape)}.")
        check_sides("Images", images.shape[2], images.shape[3], self.traits)
        features = self.features(images.contiguous(memory_format=self.memory_format))
        descriptors = self.aggregate(features)
        return (descriptors, features) if with_features else descriptors

    def features(self, images: Tensor, *, resized: bool = False) -> Features:
        """Run the backbone on normalized images (B, 3, H, W); `resized` is `always` of `sized_features`."""
        return sized_features(
            self.family, self.backbone, images, self.traits.positions, self.spec.interpolation, always=resized
        )

    def aggregate(self, features: Features) -> Tensor:
        """Compute descriptors (B, D) from the features of the backbone."""
        row = AGGREGATIONS[self.spec.aggregation]
        descriptors = self.aggregation(*(getattr(features, part) for part in row.needs))
        if self.spec.normalized and not row.always_normalized:
            descriptors = F.normalize(descriptors, dim=-1)
        return self.projection(descriptors)

    def regions(self, features: Features) -> Tensor:
        """Compute descriptors of regions (B, R, D), the first of the whole image, for an aggregation that has some."""
        regions = self.aggregation.regions(features.map)  # type: ignore[operator] # its row says that it has them
        return self.projection(regions)

    @torch.no_grad()
    def check_regions(self, image_size: tuple[int, int]) -> None:
        """Check that images of a height and width have regions.

        Raises:
            ValueError: their feature map cannot be divided; the message names sizes that fit.
        """
        was_training = self.training
        feature_map = self.eval().features(self.mean.new_zeros(1, 3, *image_size)).map
        self.train(was_training)
        assert feature_map is not None  # an aggregation with regions takes a map
        self.aggregation.check_map(*feature_map.shape[2:], stride=self.traits.stride)  # type: ignore[operator]

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
        return self.normalize(resize_image(pixels.to(self.mean.device), self.image_size, self.resize))


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
    resize: Resize | None = None,
    aggregation: str | None = None,
    aggregation_options: Mapping[str, Any] | None = None,
    interpolation: Interpolation | None = None,
    seed: int = 0,
) -> Encoder:
    """Build an encoder for training, starting from a pretrained backbone; it is in eval mode.

    Args:
        architecture: see `find_family`.
        weights, image_size: see `Family.load`.
        descriptor_dim: D; None takes the dimension of the aggregation, such as that of CLIP's features. Only the
            aggregations with `any_dim`, such as `gem`, allow another value.
        normalized: L2-normalize descriptors of an aggregation that does not always do so, such as `token`.
        aggregation: a row of `AGGREGATIONS`; None takes the default of the family.
        aggregation_options: see `filled_options`.
        interpolation: how the position embedding is resized; None takes that of the architecture.
        normalization, mean, std, resize: how images are normalized and resized, see `pixel_statistics`.
        seed: seed of `random` weights and of the layers after the backbone.

    Raises:
        ValueError: unknown weights or settings that do not fit together, or a backbone that cannot be rebuilt from its
            architecture name.
    """
    chosen_statistics(normalization, mean, std)  # refuses, as the plan, before weights are fetched
    plan = plan_encoder(
        architecture,
        weights,
        image_size,
        descriptor_dim=descriptor_dim,
        aggregation=aggregation,
        aggregation_options=aggregation_options,
        interpolation=interpolation,
    )
    loaded = FAMILIES[plan.family].load(plan.network, weights, seed=seed)
    has_texts = plan.aggregation == "token" and plan.shares_text_space and weights != "random"
    text_weights = None
    if has_texts:
        from progeo.models.backbones.clips import weights_anywhere  # other families need no open_clip

        text_weights = weights_anywhere(loaded.architecture, weights)
    pixels = pixel_statistics(architecture, weights, normalization=normalization, mean=mean, std=std, resize=resize)
    spec = EncoderSpec(
        family=plan.family,
        architecture=loaded.architecture,
        image_size=loaded.image_size,
        descriptor_dim=plan.descriptor_dim,
        mean=pixels.mean,
        std=pixels.std,
        aggregation=plan.aggregation,
        aggregation_options=plan.aggregation_options,
        normalized=normalized or find_aggregation(plan.aggregation).always_normalized,
        interpolation=plan.network.interpolation,
        resize=pixels.resize,
        text_weights=text_weights,
        configuration=None if loaded.configuration is None else dict(loaded.configuration),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec, loaded.network).eval()
        encoder.to(memory_format=encoder.memory_format)
    _check_restored(encoder)
    return encoder


@dataclass(frozen=True)
class EncoderPlan:
    """All that is determined of an encoder before its weights are fetched."""

    family: str
    network: NetworkSpec
    aggregation: str
    aggregation_options: dict[str, Any]
    descriptor_dim: int
    shares_text_space: bool
    """Whether the token is in the space of the texts of a CLIP."""


def plan_encoder(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    descriptor_dim: int | None = None,
    aggregation: str | None = None,
    aggregation_options: Mapping[str, Any] | None = None,
    interpolation: Interpolation | None = None,
) -> EncoderPlan:
    """Determine an encoder from its settings alone, see `build_encoder`.

    Raises:
        ValueError: an unknown architecture, or settings that do not fit together.
    """
    name, own_name = find_family(architecture)
    family = FAMILIES[name]
    aggregation = aggregation or family.default_aggregation(own_name)
    options = filled_options(aggregation, aggregation_options or {})
    configuration = family.configuration(own_name, weights)
    traits = empty_traits(architecture, image_size, configuration)
    dim = aggregation_dim(aggregation, traits, descriptor_dim, options, own_name)
    if find_aggregation(aggregation).has_grid:
        if image_size is not None and "grid" not in (aggregation_options or {}):
            options["grid"] = tuple(max(side // traits.stride, 1) for side in as_height_width(image_size))
        image_size = image_size or limited_traits(aggregation, traits, options).only_size
    if image_size is not None:
        check_sides("`image_size`", *as_height_width(image_size), limited_traits(aggregation, traits, options))
    needs, interpolation = find_aggregation(aggregation).needs, interpolation or family.interpolation(own_name)
    network = NetworkSpec(own_name, image_size, needs, interpolation, configuration)
    return EncoderPlan(name, network, aggregation, options, dim, traits.shares_text_space)


def empty_encoder(spec: EncoderSpec) -> Encoder:
    """Build an encoder from its spec on the meta device, without weights."""
    needs = find_aggregation(spec.aggregation).needs
    network = NetworkSpec(spec.architecture, spec.image_size, needs, spec.interpolation, spec.configuration)
    backbone = FAMILIES[spec.family].empty(network)
    with on_meta():
        return Encoder(spec, backbone)


def restore_encoder(spec: EncoderSpec, state: dict[str, Tensor]) -> Encoder:
    """Build an encoder from its spec and load saved weights into it; it is in eval mode.

    Raises:
        ValueError: the weights do not fit; the message names the first that does not.
    """
    encoder = empty_encoder(spec)
    check_fits(state, encoder.state_dict(), spec.architecture)
    encoder.load_state_dict(state, assign=True)
    return encoder.to(memory_format=encoder.memory_format).eval()


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
    check_not_projected(spec)
    changed = dataclasses.replace(spec, descriptor_dim=len(weight), pooled_dim=spec.descriptor_dim, text_weights=None)
    return restore_encoder(changed, {**encoder.state_dict(), "projection.0.weight": weight, "projection.0.bias": bias})


def sized_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the state dict of the backbone, with its position embedding resized for images of `image_size`."""
    state, positions = encoder.backbone.state_dict(), encoder.traits.positions
    if positions is not None and positions.name is not None:
        grid = positions.grid_of(*encoder.image_size)
        if grid != positions.grid:
            embedding = state[positions.name]
            state[positions.name] = resized_embedding(embedding, positions.grid, grid, encoder.spec.interpolation)
    return state


def check_not_projected(spec: EncoderSpec) -> None:
    """Refuse an encoder that already has a projection.

    Raises:
        ValueError: it has one.
    """
    if spec.pooled_dim is not None:
        raise ValueError(f"The descriptors are projected already, from {spec.pooled_dim} to {spec.descriptor_dim}.")


def spec_to_json(spec: EncoderSpec) -> dict[str, object]:
    """Convert a spec to plain values for a JSON file."""
    return dataclasses.asdict(spec)


@torch.no_grad()
def _check_restored(encoder: Encoder) -> None:
    """Refuse an encoder that its spec and weights do not restore, since its backbone differs from its architecture."""
    spec, state = encoder.spec, encoder.state_dict()
    height, width = sample_size(encoder.traits)
    image = torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)
    try:
        if len({tensor.data_ptr() for tensor in state.values()}) < len(state):
            raise ValueError("its layers share weights, which are no separate tensors in a file")
        restored = restore_encoder(spec_from_json(json.loads(json.dumps(spec_to_json(spec)))), state)
        wanted, found = encoder(image), restored(image)
    except Exception as error:  # anything can fail in a backbone with another structure
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
    else:
        if wanted.shape != (1, spec.descriptor_dim):
            reason = f"an image gets {tuple(wanted.shape[1:])} numbers, not ({spec.descriptor_dim},)"
        elif wanted.equal(found):
            return
        else:
            reason = f"loaded again, its descriptors differ by {(wanted - found).abs().max():.2g}"
    raise ValueError(
        f"{spec.architecture} with these weights cannot be an encoder: {reason}. Use another architecture."
    )


def _memory_format(backbone: nn.Module) -> torch.memory_format:
    """Return how images lie in memory: channels last, which is faster, unless training on a CPU would crash.

    In the backward pass of a strided 1 x 1 convolution of fewer than 16 channels, such as the first of MobileCLIP and
    RepVGG, oneDNN (3.12, in PyTorch 2.11 to 2.14) writes beyond its memory if channels are last.
    """
    thin = (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride > (1, 1)
        and layer.in_channels < 16
        for layer in backbone.modules()
    )
    return torch.contiguous_format if any(thin) else torch.channels_last


def _projection(spec: EncoderSpec) -> nn.Module:
    assert spec.pooled_dim is not None
    linear = nn.Linear(spec.pooled_dim, spec.descriptor_dim)
    return nn.Sequential(linear, L2Norm() if spec.normalized else nn.Identity())


def spec_from_json(values: Mapping[str, Any]) -> EncoderSpec:
    """Parse a spec that `spec_to_json` wrote; missing fields get their defaults, and lists become tuples.

    Raises:
        ValueError: unknown fields, missing fields without a default, or invalid values.
    """
    spec = converted(values, EncoderSpec)
    family = FAMILIES.get(spec.family)
    if family is None:
        raise ValueError(
            f"The family {spec.family!r} of its backbone is not known: there are {', '.join(FAMILIES)}. Name the "
            f"file that adds it with `plugin`."
        )
    if math.prod(spec.image_size) > _MAX_IMAGE_PX:
        raise ValueError(f"image_size {spec.image_size} is of more than {_MAX_IMAGE_PX:,} pixels.")
    family.check_rebuilt(spec.architecture, spec.configuration)
    options = filled_options(spec.aggregation, spec.aggregation_options)
    interpolation = values.get("interpolation", family.interpolation(spec.architecture))
    return dataclasses.replace(spec, aggregation_options=options, interpolation=interpolation)
