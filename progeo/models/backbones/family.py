"""What a backbone family is: a library of networks that encoders are built on, as a row of `FAMILIES`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:  # loading an encoder needs no jsonargparse
    from progeo.models.options import NormalizationName

ImageSize = int | tuple[int, int]
Part = Literal["map", "token"]
"""A part of `Features`."""
Interpolation = Literal["edges", "corners", "dinov2"]
"""How a position embedding is resized, always bicubic: `edges` aligns the edges of the corner cells, with antialiasing,
as torch and open_clip do; `corners` aligns their centers (`align_corners`), as published ProGEO does; `dinov2` scales
by (n + 0.1) / m from m to n cells, without antialiasing, as DINOv2 does."""


class Features(NamedTuple):
    """What a backbone computes for normalized images (B, 3, H, W); a part that it does not have is None."""

    map: Tensor | None
    """Feature map (B, C, h, w)."""
    token: Tensor | None
    """One vector per image (B, E), such as the class token."""


@dataclass(frozen=True)
class PositionEmbedding:
    """The position embedding of a network for one image size: learned, rotary (computed), or both."""

    name: str | None
    """The learned parameter (P + h w, E) or (1, P + h w, E) in the network, where the first P tokens have no position;
    None without one."""
    grid: tuple[int, int]
    """Its rows h and columns w."""
    stride: int
    """Pixels per cell of the grid."""
    grid_of: Callable[[int, int], tuple[int, int]]
    """Returns the rows and columns that images of this height and width need."""
    computed: Callable[[tuple[int, int]], Mapping[str, Tensor]] | None = None
    """Returns the buffers that hold a rotary embedding, by their names in the network, for these rows and columns."""


@dataclass(frozen=True)
class Traits:
    """What is known of a network without running it."""

    channels: int | None
    """C, the channels of its feature map; None without a map."""
    token_dim: int | None
    """E, the dimension of its token; None without a token."""
    features_dim: int
    """Default dimension of descriptors."""
    stride: int
    """Pixels per cell of the feature map."""
    side_multiple: int = 1
    """Height and width of images must be multiples of this."""
    min_side: int = 1
    """Minimum height and width of images in pixels, if it is above that of all encoders."""
    only_size: tuple[int, int] | None = None
    """The only height and width in pixels that the network takes; None if it takes others."""
    shares_text_space: bool = False
    """Whether the token can be compared with the text features of the CLIP that it belongs to."""
    positions: PositionEmbedding | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """A network to build, except its weights."""

    architecture: str
    """A name that the family knows."""
    image_size: ImageSize | None = None
    """Pixels, the side of a square or (height, width); None takes the size of the weights."""
    parts: Collection[Part] = ("map", "token")
    """Parts of the features that will be used; layers that none of them passes are removed."""
    interpolation: Interpolation = "edges"
    """How a position embedding is resized to the image size."""
    configuration: Mapping[str, Any] | None = None
    """What the family needs beside the name, see `Family.configuration`; None takes that of the name."""


@dataclass(frozen=True)
class Loaded:
    """A network with weights."""

    network: nn.Module
    """The library's own module in eval mode, without the layers that no needed part of the features passes."""
    architecture: str
    """Name that `Family.empty` rebuilds the network from."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    configuration: Mapping[str, Any] | None = None
    """Configuration that `Family.empty` rebuilds the network from, as plain values; None for a name that says it all.
    """


class Family(ABC):
    """A library of networks."""

    prefix: ClassVar[str] = ""
    """What the names of the network's parameters begin with in the library's own files."""
    needs_prefix: ClassVar[bool] = False
    """Whether settings name its architectures only with the name of the family, such as `timm/resnet10t`."""
    usual_normalization: ClassVar["NormalizationName"] = "imagenet"
    """Pixel statistics of weights that do not record their own."""

    @abstractmethod
    def knows(self, architecture: str) -> bool:
        """Return whether the family has an architecture of this name."""

    @abstractmethod
    def default_aggregation(self, architecture: str) -> str:
        """Return the aggregation that an encoder gets if none is named."""

    @abstractmethod
    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Build a network with weights.

        Args:
            wanted: the network.
            weights: a tag of the library, a local file, or `random`.
            seed: seed of `random` weights.

        Raises:
            ValueError: an unknown tag, weights that do not fit, or an image size that the network does not take.
        """

    @abstractmethod
    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the network of `load` on the meta device, without weights, to load a state dict into."""

    @abstractmethod
    def traits(self, network: nn.Module) -> Traits:
        """Return what is known of a network of this family."""

    @abstractmethod
    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding, if it has one."""

    def initialize(self, network: nn.Module, local_features: Callable[[], Tensor], seed: int) -> None:
        """Set the first weights of parts that were added to pretrained ones, in place, before training; none here.

        Args:
            network: a network of `load`.
            local_features: computes a sample of the vectors of its feature maps of training images, (n, C).
            seed: seed of random choices.

        Raises:
            ValueError: training cannot start from these local features.
        """

    def configuration(self, architecture: str, weights: str) -> Mapping[str, Any] | None:
        """Return what decides the network of these weights beside its name, before they are fetched; None if nothing.

        Raises:
            ValueError: the configuration that the weights bring cannot be used.
        """
        return None

    def check_rebuilt(self, architecture: str, configuration: Mapping[str, Any] | None) -> None:
        """Check that the family has a network of this name and configuration, which are from a file.

        Raises:
            ValueError: it has none.
        """
        if configuration is not None:
            raise ValueError(f"{architecture!r} has a configuration, which its family does not take.")
        if not self.knows(architecture):
            raise ValueError(f"The family has no architecture {architecture!r}.")

    def interpolation(self, architecture: str) -> Interpolation:
        """Return how the position embedding of an architecture was resized when its weights were trained."""
        return "edges"

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` that weights were trained with, without those that are not known."""
        return {}

    def usual_pixels(self, architecture: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` that all known weights of an architecture have; empty if there are none."""
        return {}

    def own_resize(self, architecture: str, weights: str) -> str:
        """Return the interpolation that images were resized with in training; bilinear where it is not known."""
        return "bilinear"

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of weights and what they were trained on, in words; None if it is not known."""
        return None

    def usage(
        self,
        architecture: str,
        image_size: tuple[int, int],
        weights: str | None,
        configuration: Mapping[str, Any] | None = None,
    ) -> str:
        """Return Python code that loads `backbone.safetensors` with the library.

        Args:
            architecture, image_size, configuration: of the encoder.
            weights: weights that training started from; None if they are not known.

        Raises:
            ValueError: the library cannot load a backbone alone.
        """
        raise ValueError(f"`format` backbone is not for {architecture}: its family names no way to load one.")

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Enable gradient checkpointing: recompute blocks in the backward pass, which saves memory.

        Raises:
            ValueError: the network does not support it.
        """
        raise ValueError("`gradient_checkpointing` works for a ViT only: leave it out.")
