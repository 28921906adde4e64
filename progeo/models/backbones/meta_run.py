"""Properties of a network that are found on the meta device, where tensors have shapes but no values."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from progeo.models.backbones.family import Features, Part

FeaturesOf = Callable[[nn.Module, Tensor], Features]
"""`Family.features`."""


_FILLING = {
    *(getattr(Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_")),
    *(getattr(nn.init, name) for name in ("uniform_", "normal_", "constant_", "kaiming_uniform_", "kaiming_normal_")),
}
"""Functions that change only the values of their first argument, a tensor, unless they are given another tensor."""


class _WithoutValues(TorchFunctionMode):
    """Skip the initialization of tensors on the meta device, which takes most of the time of building a network."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        if function in _FILLING:
            tensor, *others = (*arguments, *keywords.values())
            # A network that is run in the block may add its shortcuts in place.
            if tensor.is_meta and not any(isinstance(other, Tensor) for other in others):
                return tensor
        return function(*arguments, **keywords)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build networks in this block on the meta device, without initializing them."""
    with torch.device("meta"), _WithoutValues():
        yield


class _Run(nn.Module):
    def __init__(self, features: FeaturesOf, network: nn.Module):
        super().__init__()
        self.features = features
        self.network = network

    def forward(self, images: Tensor) -> Features:
        return self.features(self.network, images)


def meta_features(
    features: FeaturesOf, network: nn.Module, image_size: tuple[int, int], other: dict[str, Tensor] | None = None
) -> Features:
    """Return the features, without values, of one image (1, 3, H, W).

    Args:
        features: of the network's family.
        network: network on any device.
        image_size: height and width in pixels.
        other: tensors that take the place of parameters and buffers, by name.
    """
    run = _Run(features, network)
    other = {name: torch.empty_like(tensor, device="meta") for name, tensor in (other or {}).items()}
    with torch.no_grad():
        return functional_call(run, _on_meta(run, other), (torch.empty(1, 3, *image_size, device="meta"),))


def measured_map(
    features: FeaturesOf, network: nn.Module, image_size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Measure the feature map of a network.

    Args:
        features: of the network's family.
        network: network on any device.
        image_size: the only height and width that the network takes; None if it takes any.

    Returns:
        Its channels, and its stride: pixels per row.
    """
    height, width = image_size or (448, 448)  # a multiple of patches of 14, 16 and 32 pixels, and of windows of 7
    found = meta_features(features, network, (height, width)).map
    assert found is not None
    _, channels, rows, _ = found.shape
    if height % rows and image_size is None:  # cells are cut off at the edges
        more = meta_features(features, network, (2 * height, width)).map
        assert more is not None
        rows = more.shape[2] - rows
    return channels, round(height / rows)


def unused_layers(
    features: FeaturesOf, network: nn.Module, image_size: tuple[int, int], parts: Collection[Part]
) -> set[str]:
    """Name the layers, or single parameters, of a network on any device that no needed part depends on."""
    run = _Run(features, network)
    parameters = {
        name: torch.empty_like(tensor, device="meta").requires_grad_()
        for name, tensor in network.named_parameters()
        if tensor.requires_grad
    }
    with torch.enable_grad():
        found = functional_call(run, _on_meta(run, parameters), (torch.empty(1, 3, *image_size, device="meta"),))
        needed = [tensor for part, tensor in found._asdict().items() if part in parts and tensor is not None]
    used = _leaves(needed)
    unused = {name for name, parameter in parameters.items() if parameter not in used}
    in_use = {prefix for name, _ in network.named_parameters() if name not in unused for prefix in _prefixes(name)}
    return {next(prefix for prefix in _prefixes(name) if prefix not in in_use) for name in unused}


def _leaves(tensors: Iterable[Tensor]) -> set[Tensor]:
    """Return the leaves that tensors depend on, from the graph alone: a backward pass would take longer."""
    nodes = [get_gradient_edge(tensor).node for tensor in tensors]
    seen = set(nodes)
    while nodes:
        following = {node for node, _ in nodes.pop().next_functions if node is not None} - seen
        seen |= following
        nodes += following
    return {node.variable for node in seen if hasattr(node, "variable")}


def remove_layers(network: nn.Module, names: Iterable[str]) -> None:
    """Replace layers by identities, and single parameters by None, in place."""
    for name in names:
        owner_name, _, last = name.rpartition(".")
        owner = network.get_submodule(owner_name)
        setattr(owner, last, nn.Identity() if isinstance(getattr(owner, last), nn.Module) else None)


def _on_meta(run: _Run, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the meta device for all of a run's, of which `other` are given by name in the network."""
    tensors = dict(run.named_parameters()) | dict(run.named_buffers())
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return empty | {f"network.{name}": tensor for name, tensor in other.items()}


def _prefixes(name: str) -> list[str]:
    """List a dotted name's beginnings: `a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
