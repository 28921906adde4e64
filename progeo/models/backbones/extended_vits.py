"""ViTs of timm with learned parts added: what the families of such networks share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models import checkpoint, is_model_in_modules
from torch import Tensor, nn

from progeo.models.backbones.family import Family, Interpolation, Loaded, NetworkSpec, Part, Traits
from progeo.models.backbones.meta_run import on_meta
from progeo.models.backbones.timm import Timm

_VITS = Timm()
_PARTS: tuple[Part, ...] = ("map",)
"""Parts of the features of a ViT that need all of its layers."""


class ExtendedVits(Family):
    """ViTs of timm with learned parts added, each with the name of the ViT, see `vit`.

    Weights are those of the ViT, see `Timm.load`; those of the added parts are random.
    """

    needs_prefix = True

    @abstractmethod
    def extend(self, network: Any, architecture: str) -> None:
        """Add the parts with random weights to a ViT, in place.

        Raises:
            ValueError: the ViT cannot have these parts.
        """

    def vit(self, architecture: str) -> str:
        """Return timm's name of the ViT."""
        return architecture

    def knows(self, architecture: str) -> bool:
        """Return whether timm has the ViT."""
        return is_model_in_modules(self.vit(architecture), ["vision_transformer"])

    def load(self, wanted: NetworkSpec, weights: str, *, seed: int) -> Loaded:
        """Build a network with weights of the ViT, see `Timm.load`, and random ones of its added parts."""
        loaded = _VITS.load(self._spec_of_vit(wanted), weights, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.extend(loaded.network, wanted.architecture)
        return replace(loaded, architecture=wanted.architecture)

    def empty(self, wanted: NetworkSpec) -> nn.Module:
        """Build the network of `load` on the meta device, without weights, to load a state dict into."""
        network = _VITS.empty(self._spec_of_vit(wanted))
        with on_meta():
            self.extend(network, wanted.architecture)
        return network

    def traits(self, network: nn.Module) -> Traits:
        """Return what is known of a network."""
        return _VITS.traits(network)

    def configuration(self, architecture: str, weights: str) -> Mapping[str, Any] | None:
        """Return the configuration of the ViT."""
        return _VITS.configuration(self.vit(architecture), weights)

    def check_rebuilt(self, architecture: str, configuration: Mapping[str, Any] | None) -> None:
        """Check the name, and the configuration of the ViT."""
        super().check_rebuilt(architecture, None)
        _VITS.check_rebuilt(self.vit(architecture), configuration)

    def interpolation(self, architecture: str) -> Interpolation:
        """Return `dinov2` for DINOv2, with registers, too, as the programs do that extend it."""
        vit = self.vit(architecture)
        return "dinov2" if "_dinov2" in vit else _VITS.interpolation(vit)

    def own_normalization(self, architecture: str, weights: str) -> Mapping[str, Sequence[float]]:
        """Return the pixel `mean` and `std` of the weights of the ViT."""
        return _VITS.own_normalization(self.vit(architecture), weights)

    def license(self, architecture: str, weights: str) -> str | None:
        """Return the license of the weights of the ViT."""
        return _VITS.license(self.vit(architecture), weights)

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`."""
        _VITS.checkpoint_gradients(network)

    def _spec_of_vit(self, wanted: NetworkSpec) -> NetworkSpec:
        """Return the spec of the ViT with all of its layers."""
        return replace(wanted, architecture=self.vit(wanted.architecture), parts=_PARTS)


def first_tokens(network: Any, images: Tensor) -> Tensor:
    """Return the tokens (B, N, E) that the first block of a ViT takes, of normalized images (B, 3, H, W)."""
    return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))


def run_block(network: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    """Run a block of a ViT on tokens (B, N, E)."""
    return checkpoint(block, tokens) if network.grad_checkpointing else block(tokens)
