"""A family of networks that are small enough to train in seconds: `--plugin benchmarks/small_networks.py`."""

import torch
from torch import Tensor, nn

from progeo.models.backbones import FAMILIES
from progeo.models.backbones.family import Family, Features, Loaded, NetworkSpec, Traits
from progeo.models.backbones.position_embedding import as_height_width

_CHANNELS = {"three_convolutions": (16, 32, 64)}


class SmallNetworks(Family):
    """Plain convolutions of stride 2, each with batch norm and ReLU; 41 thousand parameters with a GeM of 256."""

    def knows(self, architecture: str) -> bool:
        """Return whether there is a network of this name."""
        return architecture in _CHANNELS

    def default_aggregation(self, architecture: str) -> str:
        """Return `gem`."""
        return "gem"

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
        channels = [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]
        return Traits(channels[-1], None, channels[-1], stride=2 ** len(channels))

    def features(self, network: nn.Module, images: Tensor) -> Features:
        """Compute the feature map of normalized images (B, 3, H, W)."""
        return Features(network(images), None)

    def _build(self, architecture: str) -> nn.Module:
        layers: list[nn.Module] = []
        before = 3
        for channels in _CHANNELS[architecture]:
            layers += [nn.Conv2d(before, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        return nn.Sequential(*layers).eval()


FAMILIES["small"] = SmallNetworks()
