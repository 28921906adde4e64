"""Aggregation of the features of a backbone into descriptors: one file per method, one row of `AGGREGATIONS`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from progeo.models.aggregation.boq import BoQ, check_boq
from progeo.models.aggregation.convap import ConvAP
from progeo.models.aggregation.counts import check_counts
from progeo.models.aggregation.edtformer import EDTformer, check_edtformer
from progeo.models.aggregation.gem import GeM, GeMPool
from progeo.models.aggregation.mean import L2Norm, MeanLinear, MeanPool
from progeo.models.aggregation.mixvpr import MixVPR, check_mixvpr
from progeo.models.aggregation.netvlad import (
    NetVLAD,
    check_options,
    initialize_from,
    initialize_netvlad,
    save_clusters,
)
from progeo.models.aggregation.salad import SALAD, check_salad, min_side_cells
from progeo.models.aggregation.token_gem import TokenGeM
from progeo.models.backbones.family import Part, Traits

__all__ = [
    "AGGREGATIONS",
    "SALAD",
    "Aggregation",
    "BoQ",
    "ConvAP",
    "EDTformer",
    "GeM",
    "GeMPool",
    "L2Norm",
    "MeanLinear",
    "MeanPool",
    "MixVPR",
    "NetVLAD",
    "TokenGeM",
    "aggregation_dim",
    "build_aggregation",
    "filled_options",
    "find_aggregation",
    "limited_traits",
]
_PARTS: Mapping[Part, tuple[str, Callable[[Traits], int | None]]] = {
    "map": ("a feature map", lambda traits: traits.channels),
    "token": ("a token", lambda traits: traits.token_dim),
}
"""The parts of `Features`: their names in errors and their dimensions."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """A method of aggregation."""

    build: Callable[..., nn.Module]
    """`build(traits, dim, **options)` returns the module: the needed parts, in order -> descriptors (B, dim). The
    parameters after the first two are the options of the method, with their defaults."""
    needs: tuple[Part, ...]
    """Parts of `Features` that the module takes."""
    dim: Callable[..., int]
    """`dim(traits, **options)` returns the dimension of descriptors if none is set."""
    any_dim: bool = False
    """Whether another dimension can be set."""
    limited: Callable[..., Traits] | None = None
    """`limited(traits, **options)` returns the traits of a backbone with only the image sizes that the module takes."""
    has_grid: bool = False
    """Whether it takes feature maps of one size only, its option `grid` (rows, columns), that of an encoder's images if
    it is not given."""
    always_normalized: bool = True
    """Whether the module L2-normalizes descriptors; if not, it is a setting of the encoder."""
    initialize: Callable[[nn.Module, Tensor, int], None] | None = None
    """`initialize(module, local_features (n, C), seed)` sets the first weights from a sample of the vectors of feature
    maps of training images."""
    initialize_from: Callable[[nn.Module, Path], None] | None = None
    """`initialize_from(module, file)` sets them from a file instead."""
    save_start: Callable[[nn.Module, Tensor, Path], None] | None = None
    """`save_start(module, local_features, file)` saves what `initialize_from` reads."""
    has_regions: bool = False
    """Whether the module has `regions(map)`, which returns descriptors of parts of an image (B, R, dim), and
    `check_map(height, width, stride=None)`, which refuses maps of sizes that have no such parts."""


def _edtformer_dim(traits: Traits, *, channels: int, rows: int, **options: Any) -> int:
    check_edtformer(traits, channels=channels, rows=rows, **options)
    return channels * rows


def _features_dim(traits: Traits, **_: Any) -> int:
    return traits.features_dim


def _channels(traits: Traits) -> int:
    assert traits.channels is not None
    return traits.channels


def _boq_dim(traits: Traits, *, channels: int, rows: int, **counts: int) -> int:
    check_boq(channels=channels, rows=rows, **counts)
    return channels * rows


def _convap_dim(traits: Traits, *, out_channels: int, rows: int, columns: int) -> int:
    check_counts("convap", out_channels=out_channels, rows=rows, columns=columns)
    return out_channels * rows * columns


def _mixvpr_dim(traits: Traits, **options: Any) -> int:
    check_mixvpr(**options)
    return options["out_channels"] * options["rows"]


def _mixvpr_limited(traits: Traits, *, grid: tuple[int, int], **_: Any) -> Traits:
    return replace(traits, only_size=(grid[0] * traits.stride, grid[1] * traits.stride))


def _netvlad_dim(traits: Traits, *, num_clusters: int, regions: str) -> int:
    check_options(num_clusters=num_clusters, regions=regions)
    return num_clusters * _channels(traits)


def _salad_dim(traits: Traits, **options: Any) -> int:
    check_salad(**options)
    return options["num_clusters"] * options["cluster_dim"] + options["token_dim"]


def _salad_limited(traits: Traits, *, num_clusters: int, **_: Any) -> Traits:
    return replace(traits, min_side=traits.stride * min_side_cells(num_clusters))


def _token_dim(traits: Traits) -> int:
    assert traits.token_dim is not None
    return traits.token_dim


def _build_boq(
    traits: Traits, dim: int, channels: int = 512, num_queries: int = 64, num_layers: int = 2, rows: int = 32
) -> nn.Module:
    return BoQ(_channels(traits), channels=channels, num_queries=num_queries, num_layers=num_layers, rows=rows)


def _build_mixvpr(
    traits: Traits,
    dim: int,
    out_channels: int = 1024,
    rows: int = 4,
    depth: int = 4,
    ratio: float = 1.0,
    grid: tuple[int, int] = (20, 20),
) -> nn.Module:
    return MixVPR(_channels(traits), grid, out_channels=out_channels, rows=rows, depth=depth, ratio=ratio)


def _build_edtformer(
    traits: Traits,
    dim: int,
    num_queries: int = 64,
    num_layers: int = 2,
    num_heads: int = 16,
    channels: int = 256,
    rows: int = 16,
    dropout: float = 0.1,
) -> nn.Module:
    return EDTformer(
        _channels(traits),
        num_queries=num_queries,
        num_layers=num_layers,
        num_heads=num_heads,
        channels=channels,
        rows=rows,
        dropout=dropout,
    )


AGGREGATIONS: dict[str, Aggregation] = {
    "boq": Aggregation(build=_build_boq, needs=("map",), dim=_boq_dim),
    "convap": Aggregation(
        build=lambda traits, dim, out_channels=512, rows=2, columns=2: ConvAP(
            traits.channels, out_channels, rows, columns
        ),
        needs=("map",),
        dim=_convap_dim,
    ),
    "edtformer": Aggregation(build=_build_edtformer, needs=("map", "token"), dim=_edtformer_dim),
    "gem": Aggregation(
        build=lambda traits, dim, local_linear=False: GeM(traits.channels, dim, local_linear=local_linear),
        needs=("map",),
        dim=_features_dim,
        any_dim=True,
    ),
    "gem_pool": Aggregation(build=lambda traits, dim: GeMPool(), needs=("map",), dim=_channels),
    "mean": Aggregation(build=lambda traits, dim: MeanPool(), needs=("map",), dim=_channels),
    "mean_linear": Aggregation(
        build=lambda traits, dim: MeanLinear(traits.channels, dim), needs=("map",), dim=_channels, any_dim=True
    ),
    "mixvpr": Aggregation(build=_build_mixvpr, needs=("map",), dim=_mixvpr_dim, limited=_mixvpr_limited, has_grid=True),
    "netvlad": Aggregation(
        build=lambda traits, dim, num_clusters=64, regions="thirds": NetVLAD(traits.channels, num_clusters, regions),
        needs=("map",),
        dim=_netvlad_dim,
        initialize=initialize_netvlad,
        initialize_from=initialize_from,
        save_start=save_clusters,
        has_regions=True,
    ),
    "salad": Aggregation(
        build=lambda traits, dim, num_clusters=64, cluster_dim=128, token_dim=256, hidden_dim=512, dropout=0.3: SALAD(
            traits.channels,
            traits.token_dim,
            num_clusters=num_clusters,
            cluster_dim=cluster_dim,
            token_dim=token_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
        ),
        needs=("map", "token"),
        dim=_salad_dim,
        limited=_salad_limited,
    ),
    "token": Aggregation(
        build=lambda traits, dim: nn.Identity(), needs=("token",), dim=_token_dim, always_normalized=False
    ),
    "token_gem": Aggregation(
        build=lambda traits, dim: TokenGeM(),
        needs=("map", "token"),
        dim=lambda traits: _token_dim(traits) + _channels(traits),
    ),
}
"""Aggregations by name; a plugin adds rows."""


def find_aggregation(name: str) -> Aggregation:
    """Return the row of an aggregation.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in AGGREGATIONS:
        raise ValueError(
            f"`aggregation` {name!r} is not known: use {', '.join(AGGREGATIONS)}, or name the file that adds it with "
            f"`plugin`."
        )
    return AGGREGATIONS[name]


def filled_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an aggregation, with the defaults of those that are not given; lists may stand for tuples.

    Raises:
        ValueError: an option that the aggregation does not have, of another type than its default, or a missing one
            that has no default.
    """
    _, _, *parameters = inspect.signature(find_aggregation(name).build).parameters.values()
    defaults = {each.name: each.default for each in parameters}
    for option, value in options.items():
        if option not in defaults:
            has = f"its options are {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"`aggregation_options` has {option!r}, which is no option of {name}: {has}.")
        default = defaults[option]
        same = (type(value), type(default)) in ((int, float), (list, tuple)) or type(value) is type(default)
        if default not in (None, inspect.Parameter.empty) and not same:
            raise ValueError(
                f"`aggregation_options`: {option} of {name} must be a {type(default).__name__}, got {value!r}."
            )
    filled = defaults | dict(options)
    filled |= {name: tuple(filled[name]) for name, default in defaults.items() if isinstance(default, tuple)}
    if missing := [option for option, value in filled.items() if value is inspect.Parameter.empty]:
        raise ValueError(f"`aggregation_options`: {name} needs {', '.join(missing)}.")
    return filled


def aggregation_dim(name: str, traits: Traits, dim: int | None, options: Mapping[str, Any], architecture: str) -> int:
    """Return the dimension of descriptors: `dim`, or that of the aggregation if it is None.

    Args:
        options: see `filled_options`.
        architecture: name of the backbone, for errors.

    Raises:
        ValueError: the backbone does not give what the aggregation needs, or the aggregation has another dimension.
    """
    if dim is not None and dim < 1:
        raise ValueError(f"`descriptor_dim` must be at least 1, got {dim}.")
    row = find_aggregation(name)
    given = [part for part, (_, size) in _PARTS.items() if size(traits) is not None]
    if missing := [_PARTS[part][0] for part in row.needs if part not in given]:
        fitting = [other for other, each in AGGREGATIONS.items() if set(each.needs) <= set(given)]
        raise ValueError(
            f"`aggregation` {name} needs {' and '.join(missing)}, and {architecture} gives "
            f"{' and '.join(_PARTS[part][0] for part in given)} only. Use {' or '.join(fitting)}."
        )
    usual = row.dim(traits, **filled_options(name, options))
    if dim not in (None, usual) and not row.any_dim:
        raise ValueError(
            f"The descriptors of {architecture} with {name} have {usual} dimensions, `descriptor_dim` cannot be {dim}. "
            f"Leave it out."
        )
    return dim or usual


def limited_traits(name: str, traits: Traits, options: Mapping[str, Any]) -> Traits:
    """Return the traits of a backbone with only the image sizes that an aggregation takes, too.

    Args:
        options: all options of the aggregation, see `filled_options`.
    """
    row = find_aggregation(name)
    return traits if row.limited is None else row.limited(traits, **options)


def build_aggregation(
    name: str, traits: Traits, dim: int | None = None, *, architecture: str = "the backbone", **options: Any
) -> nn.Module:
    """Build an aggregation for the features of a backbone.

    Args:
        dim: D, the dimension of descriptors; None takes that of the aggregation.
        architecture: name of the backbone, for errors.
        options: see `filled_options`.

    Raises:
        ValueError: see `aggregation_dim` and `filled_options`.
    """
    dim = aggregation_dim(name, traits, dim, options, architecture)
    return find_aggregation(name).build(traits, dim, **filled_options(name, options))
