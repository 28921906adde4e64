"""Encoders that have a name instead of a folder, in one table."""

from collections.abc import Callable

from progeo.export.hub_encoders import load_hub_encoder
from progeo.models.backbones import FAMILIES, empty_traits
from progeo.models.encoder import Encoder, build_encoder
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.printable import reason_of_failure

_RUN_CODE = ("hub",)
"""Kinds of names that run code of others."""


def _thumbnail(name: str) -> Encoder:
    if name:
        raise ValueError(f"There is one thumbnail, not thumbnail:{name}.")
    return ThumbnailEncoder()


def _onnx(path: str) -> Encoder:
    from progeo.export.onnx_encoders import load_onnx_encoder  # whose metadata other encoders do not need

    return load_onnx_encoder(path)


def _backbone(family: str, name: str) -> Encoder:
    """Build the encoder `ARCHITECTURE:WEIGHTS`: the token of a backbone, or the mean of its map if it has no token.

    The address of a CLIP, such as `hf-hub:owner/name`, is both.
    """
    own_name, _, weights = name.partition(":")
    if not weights:
        raise ValueError(f"`encoder` {family}:{name} has no weights: add them, for example {family}:{name}:random.")
    if FAMILIES[family].knows(name):
        own_name = weights = name
    architecture = f"{family}/{own_name}"
    try:
        aggregation = "mean" if empty_traits(architecture).token_dim is None else "token"
        return build_encoder(architecture, weights, aggregation=aggregation).eval()
    except ValueError as error:
        raise ValueError(f"`encoder` {family}:{name} cannot be built: {error}") from None


ENCODERS: dict[str, Callable[[str], Encoder]] = {
    "thumbnail": _thumbnail,
    "hub": load_hub_encoder,
    "onnx": _onnx,
}
"""Loaders of encoders by kind: of `KIND:NAME`, a loader gets the `NAME`, which may be empty."""


def is_name(name: str) -> bool:
    """Return whether a text is the name of an encoder, such as `KIND:NAME`, and neither a path nor an address."""
    kind, _, rest = name.partition(":")
    return kind in ENCODERS or (kind in FAMILIES and bool(rest))


def load_named_encoder(name: str, *, trust: bool) -> Encoder | None:
    """Load the encoder of a name such as `KIND:NAME`, in eval mode; None if the kind is no row of a table.

    The tables are `ENCODERS`, and `FAMILIES` for the backbone `FAMILY:ARCHITECTURE:WEIGHTS`.

    Args:
        name: name of the encoder.
        trust: run code of others to load it.

    Raises:
        ValueError: it cannot be loaded, or needs `trust`.
    """
    if not is_name(name):
        return None
    kind, _, rest = name.partition(":")
    if kind in FAMILIES and rest:
        return _backbone(kind, rest)
    if kind in _RUN_CODE and not trust:
        raise ValueError(
            f"{name} runs the code of that repository, which can do on this machine whatever you can: look at it, "
            f"then add `trust`. Only progeo evaluate and progeo compare take it."
        )
    try:
        encoder = ENCODERS[kind](rest)
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # code of a plugin can fail in any way
        raise ValueError(f"{name} cannot be loaded: {reason_of_failure(error)}") from error
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{name} must be an Encoder, such as a WrappedEncoder, got a {type(encoder).__name__}.")
    return encoder.eval()
