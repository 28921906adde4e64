"""A loss, an aggregation and a backbone family of one's own: `progeo train encoder --plugin my_method.py ...`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from progeo.models.aggregation import AGGREGATIONS, Aggregation
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.family import Family, Features, Loaded, NetworkSpec, Traits
from progeo.models.backbones.position_embedding import as_height_width
from progeo.training.loss_terms import LOSS_TERMS, LossTerm


# A loss: a function of tensors, its settings, and a row. The settings are a section `pull`, with flags such as
# --pull.weight.
@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Stage 2: the loss that pulls images of a class together."""

    weight: NonNegativeFloat = 0.0
    """Weight of the loss. 0 disables it."""
    power: PositiveFloat = 2.0
    """Power of the distances."""


def pull(descriptors: Tensor, labels: Tensor, *, power: float) -> Tensor:
    """Compute the mean power of the distances of descriptors (B, D) of the same class, given by labels (B,)."""
    same = labels[:, None] == labels[None, :]
    squared = (descriptors[:, None] - descriptors[None, :]).pow(2).sum(dim=2)
    return (squared.clamp(min=1e-12).pow(power / 2) * same).sum() / same.sum()


# "pairs" also makes it see the images of all processes; without it, a loss sees those of one micro-batch.
LOSS_TERMS["pull"] = LossTerm(PullOptions, pull, needs=("descriptors", "labels", "pairs"))


# An aggregation: a module and a row. `--encoder.aggregation peak --encoder.aggregation_options sharpness=2` chooses it.
class Peak(nn.Module):
    """Softmax-weighted mean of a feature map, linear layer, L2."""

    def __init__(self, in_channels: int, out_dim: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.linear = nn.Linear(in_channels, out_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) into L2-normalized descriptors (B, D)."""
        cells = feature_map.flatten(2)
        return F.normalize(self.linear((cells * (self.sharpness * cells).softmax(dim=2)).sum(dim=2)))


def build_peak(traits: Traits, dim: int, *, sharpness: float = 1.0) -> nn.Module:
    """Build the module; the parameters after the first two are its options."""
    return Peak(traits.channels, dim, sharpness)


def usual_dim(traits: Traits, *, sharpness: float) -> int:
    """Return the dimension of descriptors if none is set."""
    return traits.channels


AGGREGATIONS["peak"] = Aggregation(build=build_peak, needs=("map",), dim=usual_dim, any_dim=True)


# A backbone family: its networks by name, and a row. `--model.architecture mine/small --model.weights random` chooses
# one.
class Mine(Family):
    """Small networks of two convolutions."""

    channels = {"small": 16, "smaller": 8}  # noqa: RUF012 - never changed

    def knows(self, architecture: str) -> bool:
        """Return whether there is a network of this name."""
        return architecture in self.channels

    def default_aggregation(self, architecture: str) -> str:
        """Return the aggregation that an encoder gets if none is named."""
        return "peak"

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Build a network with random weights."""
        if weights != "random":
            raise ValueError(f"`weights` of {wanted.architecture} can be random only, got {weights!r}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._build(wanted.architecture)
        return Loaded(network, wanted.architecture, as_height_width(wanted.image_size or 64))

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build a network without weights."""
        with torch.device("meta"):
            return self._build(wanted.architecture)

    def traits(self, network: nn.Module) -> Traits:
        """Return what is known of a network."""
        channels = network[2].out_channels
        return Traits(channels=channels, token_dim=None, features_dim=channels, stride=8)

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Compute the feature map of normalized images (B, 3, H, W)."""
        return Features(network(images), None)

    def _build(self, architecture: str) -> nn.Module:
        channels = self.channels[architecture]
        return nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.GELU(), nn.Conv2d(channels, channels, 2, 2)).eval()


FAMILIES["mine"] = Mine()
