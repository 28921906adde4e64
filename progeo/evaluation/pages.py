"""Write HTML pages from the Jinja2 templates of this package. Each page is one file that opens offline."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from progeo.files import write_text
from progeo.places.distances import distance_text


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a file of `templates/` with these values, which it escapes, and write the page."""
    write_text(path, _environment().get_template(template).render(values))


def read_script(name: str) -> str:
    """Return a file of `templates/` exactly as a page includes it."""
    return _environment().get_template(name).render()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands="{:,}".format, decimal="{:,.1f}".format, px="{:.1f}".format, distance=distance_text
    )
    return environment
