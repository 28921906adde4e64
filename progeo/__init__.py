"""Visual geo-localization: train and use encoders that find where a photo was taken."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progeo.export.weights import load_encoder

__version__ = "0.1.0"

__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> object:
    """Import the loader, and torch with it, only when it is asked for."""
    if name == "load_encoder":
        from progeo.export.weights import load_encoder

        return load_encoder
    raise AttributeError(f"module 'progeo' has no attribute {name!r}")
