"""Parts shared by the HTML pages: templates, style and scripts."""

from importlib import resources


def read_part(name: str) -> str:
    """Read the text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
