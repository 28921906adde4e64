"""Entry points for `torch.hub.load`; the functions are in `progeo/export/hub.py`."""

from progeo.export.hub import dependencies, progeo, progeo_untrained

__all__ = ["dependencies", "progeo", "progeo_untrained"]
