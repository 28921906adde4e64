"""Visual geo-localization: train and use encoders that find where a photo was taken.

What is listed in `__all__` is for other programs to use. Everything is imported when it is first asked for, and PyTorch
with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progeo.export.weights import load_encoder
    from progeo.localization.extraction import extract
    from progeo.localization.localizations import Localization, Match
    from progeo.localization.place_index import PlaceIndex, open_index

__version__ = "0.1.0"

__all__ = ["Localization", "Match", "PlaceIndex", "__version__", "extract", "load_encoder", "open_index"]

_MODULES = {
    "load_encoder": "export.weights",
    "extract": "localization.extraction",
    "Localization": "localization.localizations",
    "Match": "localization.localizations",
    "PlaceIndex": "localization.place_index",
    "open_index": "localization.place_index",
}


def __getattr__(name: str) -> object:
    """Import a name of `__all__`."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
