"""Backbones of encoders: one file per family of networks, one row of `FAMILIES`."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from progeo.models.backbones.family import Family, ImageSize, NetworkSpec, Traits


class Families(MutableMapping[str, Family]):
    """Families by name; each of ours is imported when it is first asked for, as its library takes seconds."""

    def __init__(self, modules: Mapping[str, str]):
        """Name the families.

        Args:
            modules: the module of this package and the class in it, as `module:Class`, of each family.
        """
        self._rows: dict[str, Family | str] = dict(modules)

    def __getitem__(self, name: str) -> Family:
        """Return a family."""
        row = self._rows[name]
        if isinstance(row, str):
            module, _, kind = row.partition(":")
            row = self._rows[name] = getattr(import_module(f"{__name__}.{module}"), kind)()
            assert isinstance(row, Family)
        return row

    def __setitem__(self, name: str, family: Family) -> None:
        """Add a family."""
        self._rows[name] = family

    def __delitem__(self, name: str) -> None:
        """Remove a family."""
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a family of this name, without importing it."""
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Count the families."""
        return len(self._rows)


FAMILIES = Families(
    {
        "torchvision": "torchvision:Torchvision",
        "open_clip": "open_clip:OpenClip",
        "timm": "timm:Timm",
        "aggregation_tokens": "aggregation_tokens:AggregationTokens",
        "multiconv_adapters": "side_networks:MultiConvAdapters",
        "lopa": "side_networks:LowRankAdapters",
    }
)
"""Families by name; a plugin adds rows. Of those that know an architecture named without its family, the first counts.
"""


def find_family(architecture: str) -> tuple[str, str]:
    """Split an architecture in the settings into the name of its family and the family's own name for it.

    Args:
        architecture: such as `timm/resnet10t`, `RN50` or `ViT-B/16`; see `Family.needs_prefix`.

    Raises:
        ValueError: no family knows it.
    """
    family, _, rest = architecture.partition("/")
    if family in FAMILIES and FAMILIES[family].knows(rest):
        return family, rest
    for name, row in FAMILIES.items():
        if not row.needs_prefix and row.knows(architecture):
            return name, architecture
    unknown = f"{rest!r} is not known to {family}" if family in FAMILIES else f"{architecture!r} is not known"
    raise ValueError(
        f"`architecture` {unknown}. Use for example RN50, ViT-B-16, tiny-resnet or tiny-vit of "
        f"open_clip, resnet18 or convnext_tiny of torchvision, timm/vit_small_patch14_dinov2 of timm, or name the file "
        f"that adds its family with `plugin`."
    )


def empty_backbone(
    architecture: str, image_size: ImageSize | None = None, configuration: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a backbone with all parts of its features on the meta device, without weights.

    Args:
        architecture: see `find_family`.
        image_size: pixels; None takes the size of the architecture.
        configuration: see `Family.configuration`; None takes that of the architecture.

    Raises:
        ValueError: the architecture is not known, or does not take images of this size.
    """
    name, own = find_family(architecture)
    family = FAMILIES[name]
    return family.empty(
        NetworkSpec(own, image_size, interpolation=family.interpolation(own), configuration=configuration)
    )


def empty_traits(
    architecture: str, image_size: ImageSize | None = None, configuration: Mapping[str, Any] | None = None
) -> Traits:
    """Return the traits of `empty_backbone`."""
    name, _ = find_family(architecture)
    return FAMILIES[name].traits(empty_backbone(architecture, image_size, configuration))


def freeze_layers(backbone: nn.Module, names: Sequence[str]) -> None:
    """Freeze the named layers of a backbone, such as `conv1` or `transformer.resblocks.0`.

    Batch-norm running statistics of a frozen layer are still updated in training, as in the published training.

    Raises:
        ValueError: a name that matches no parameter.
    """
    for name in names:
        frozen = [p for key, p in backbone.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not frozen:
            layers = dict.fromkeys(key.partition(".")[0] for key, _ in backbone.named_parameters())
            raise ValueError(f"`frozen` has {name!r}, which is no layer of the backbone; it has {', '.join(layers)}.")
        for parameter in frozen:
            parameter.requires_grad_(False)
