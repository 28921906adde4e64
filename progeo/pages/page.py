"""Write HTML pages from Jinja2 templates: one file, whose policy allows its own script and style and nothing else."""

import base64
import hashlib
import re
from functools import cache, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from progeo.files import write_text
from progeo.pages.gallery import Gallery
from progeo.pages.maps import TILE_HOST, Map
from progeo.printable import escaped

_ROOT = r"(?:/(?![/\s])|[A-Za-z]:[\\/])"
_ABSOLUTE = re.compile(rf"(?<=['\"]){_ROOT}[^'\"]*|(?<![^\s:=(\[{{,]){_ROOT}.*", re.DOTALL)
"""An absolute path in quotes, as in a list, or at the end of a text, also as in `hub:/folder:entry?weights=/file`."""
_FIRST, _LAST = 14, 18
"""Characters of a long name that are shown, from its start and its end."""


def write_page(
    path: Path,
    template: str,
    *,
    title: str,
    gallery: Gallery | None = None,
    map: Map | None = None,
    show_paths: bool = False,
    spreadsheet_safe: bool = False,
    **values: Any,
) -> None:
    """Render a file of `templates/` and write the page.

    Args:
        template: extends `base.html`, and places `gallery` and `map` by the macros of `parts.html`.
        title: heading of the page, and name of its window.
        gallery: rows of photos that the page lists.
        map: its map.
        show_paths: show absolute paths, which are shortened otherwise.
        spreadsheet_safe: whether formulas in the CSV file of the gallery get an apostrophe in front, see `write_csv`.
        values: what else the template shows, escaped.
    """
    environment = _environment(show_paths)
    styles, scripts = ["page.css"], ["page.js"]
    if gallery is not None:
        scripts[:0] = ["lines.js", "gallery.js"]
    if map is not None:
        styles = ["leaflet/leaflet.css", *styles, "map.css"]
        scripts[:0] = ["leaflet/leaflet.js", "map.js"]
    style, script = ("\n".join(_source(name) for name in names) for names in (styles, scripts))
    content = environment.get_template(template).render(
        title=title,
        gallery=gallery,
        gallery_data=None
        if gallery is None
        else gallery.data(show_paths=show_paths, spreadsheet_safe=spreadsheet_safe),
        map=map,
        map_data=None if map is None else map.data(),
        style=style,
        script=script,
        policy=_policy(style, script, host=None if map is None else TILE_HOST),
        **values,
    )
    write_text(path, content)


def shown_path(text: str, show_paths: bool) -> str:
    """Shorten absolute paths in quotes or at the end of a text to their last two parts; others stay as they are."""
    return text if show_paths else _ABSOLUTE.sub(lambda found: _last_parts(found[0]), text)


def _last_parts(path: str) -> str:
    kind = PurePosixPath if path.startswith("/") else PureWindowsPath
    return "/".join(["…", *[part for part in kind(path).parts if part != kind(path).anchor][-2:]])


def shortened(name: str) -> str:
    """Shorten a long name in its middle."""
    if len(name) <= _FIRST + _LAST + 1:
        return name
    return f"{name[:_FIRST]}…{name[-_LAST:]}"


def _policy(style: str, script: str, *, host: str | None) -> str:
    images = "data:" if host is None else f"data: {host}"
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src {images}; "
        f"base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """Return the name that a Content-Security-Policy gives an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _source(name: str) -> str:
    """Read a script or style, exactly as a page includes it."""
    folder = Path(__file__).parent / ("vendor" if "/" in name else "templates")
    return (folder / name).read_text(encoding="utf-8")


@cache
def _environment(show_paths: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the order of filters and orders counts
    environment.filters.update(
        thousands="{:,}".format,
        decimal="{:,.1f}".format,
        px="{:.1f}".format,
        path=partial(shown_path, show_paths=show_paths),
        shortened=shortened,
        displayed=escaped,
    )
    return environment
