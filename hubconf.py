"""Entry points of torch.hub, see `progeo/export/hub.py`."""

from progeo.export.hub import dependencies, progeo, progeo_untrained

__all__ = ["dependencies", "progeo", "progeo_untrained"]
