"""Write HTML pages from Jinja2 templates: one file, whose policy allows its own script and style and nothing else."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from progeo.files import write_text
from progeo.pages.gallery import Gallery
from progeo.pages.maps import Map, Tiles
from progeo.printable import escaped

_ROOT = r"(?:/(?![/\s])|[A-Za-z]:[\\/])"
_ABSOLUTE = re.compile(rf"(?<=['\"]){_ROOT}[^'\"]*|(?<![^\s:=(\[{{,]){_ROOT}.*", re.DOTALL)
"""An absolute path in quotes, as in a list, or at the end of a text, also as in `hub:/folder:entry?weights=/file`."""
_FIRST, _LAST = 14, 18
"""Characters of a long name that are shown, from its start and its end."""
_MAP_SCRIPTS = ("leaflet/leaflet.js", "map.js")
_STYLES = ("page.css",)
_MAP_STYLES = ("leaflet/leaflet.css", *_STYLES, "map.css")
_SERVICE_STYLE = "service.css"
_GALLERY_SCRIPTS = ("lines.js", "gallery.js")


@dataclass(frozen=True)
class Page:
    """A rendered page."""

    content: str
    """Its HTML."""
    policy: str
    """Its Content-Security-Policy, which its HTML has too."""


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
    tiles = None if map is None else map.tiles
    page = _rendered(
        template,
        scripts=[*(_MAP_SCRIPTS if map is not None else ()), *(_GALLERY_SCRIPTS if gallery is not None else ())],
        styles=_STYLES if map is None else _MAP_STYLES,
        sources={"img-src": ["data:", *([] if tiles is None else [tiles.host])]},
        show_paths=show_paths,
        title=title,
        gallery=gallery,
        gallery_data=None
        if gallery is None
        else gallery.data(show_paths=show_paths, spreadsheet_safe=spreadsheet_safe),
        map=map,
        map_data=None if map is None else map.data(),
        **values,
    )
    write_text(path, page.content)


def served_page(
    template: str, *, title: str, scripts: Sequence[str], tiles: Tiles | None = None, **values: Any
) -> Page:
    """Render a page of a service, which reads the data of its map and pictures from that service alone.

    Args:
        template: extends `service.html`.
        title: heading of the page, and name of its window.
        scripts: files of `templates/` that the page runs, after those of maps, lines and requests.
        tiles: street tiles that the map may show.
        values: what else the template shows, escaped.
    """
    return _rendered(
        template,
        scripts=[*_MAP_SCRIPTS, "lines.js", "service.js", *scripts],
        styles=[*_MAP_STYLES, _SERVICE_STYLE],
        sources={
            "img-src": ["'self'", "blob:", "data:", *([] if tiles is None else [tiles.host])],
            "connect-src": ["'self'"],
        },
        show_paths=False,
        title=title,
        gallery_data=None,
        map_data=None,
        **values,
    )


def text_page(template: str, *, title: str, **values: Any) -> Page:
    """Render a page of a service that asks that service for nothing.

    Args:
        template: extends `service.html`.
        title: heading of the page, and name of its window.
        values: what else the template shows, escaped.
    """
    return _rendered(
        template,
        scripts=[],
        styles=[*_STYLES, _SERVICE_STYLE],
        sources={"img-src": ["data:"]},
        show_paths=False,
        title=title,
        gallery_data=None,
        map_data=None,
        **values,
    )


def _rendered(
    template: str,
    *,
    scripts: Sequence[str],
    styles: Sequence[str],
    sources: Mapping[str, Sequence[str]],
    show_paths: bool,
    **values: Any,
) -> Page:
    style, script = ("\n".join(map(_source, names)) for names in (styles, [*scripts, "page.js"]))
    policy = _policy(style, script, sources)
    found = _environment(show_paths).get_template(template)
    return Page(found.render(style=style, script=script, policy=policy, **values), policy)


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


def _policy(style: str, script: str, sources: Mapping[str, Sequence[str]]) -> str:
    allowed = "; ".join(f"{name} {' '.join(each)}" for name, each in sources.items())
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; {allowed}; "
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
