"""The parts that pages are put together from: templates, the style they share, scripts."""

from importlib import resources


def read_part(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
