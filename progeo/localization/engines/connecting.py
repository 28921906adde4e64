"""Find the collection of a place index: its metadata, and where the engine is."""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from progeo.localization.engines.collection import Collection
from progeo.localization.engines.options import MEMORY, EngineName, EngineOptions, Quantization

EDGE_FOLDER = "qdrant"
"""Folder of Qdrant Edge in that of a place index."""
_NOT_IN_NAMES = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True)
class EngineMetadata:
    """The engine of a place index, as `index.json` names it."""

    name: EngineName
    url: str
    """URL of a server, `:memory:`, or the absolute path of a folder; empty for the folder of the place index."""
    collection: str
    """Name of the collection of a server; empty for a folder, which has one."""
    owner: str
    """Identifier of the place index in the collection: of the machine and folder that it was built in, its encoder and
    quantization, so that only the same command, if it was killed, goes on with the collection."""
    quantization: Quantization = "none"


@dataclass(frozen=True)
class _Kind:
    """A way to reach an engine."""

    module: str
    """Module that it needs."""
    package: str
    """Package that has the module."""
    connect: Callable[[EngineMetadata, Path], Collection]
    is_shared: bool
    """Whether it holds several collections, which have names, and several processes use it at the same time."""


def _server(engine: EngineMetadata, folder: Path) -> Collection:
    from progeo.localization.engines.server import ServerCollection

    return ServerCollection(engine.url, engine.collection)


def _edge(engine: EngineMetadata, folder: Path) -> Collection:
    from progeo.localization.engines.edge import EdgeCollection

    return EdgeCollection(Path(engine.url) if engine.url else folder / EDGE_FOLDER)


_SERVER = _Kind("qdrant_client", "qdrant-client", _server, is_shared=True)
_KINDS: Mapping[str, _Kind] = {
    "http": _SERVER,
    "https": _SERVER,
    MEMORY: _SERVER,
    "": _Kind("qdrant_edge", "qdrant-edge-py", _edge, is_shared=False),
}
"""Ways to reach an engine, by the scheme of its URL; a folder has none."""


def engine_metadata(options: EngineOptions, out: Path, encoder: str) -> EngineMetadata | None:
    """Return the engine of a new place index in the folder `out`; None for none.

    Args:
        encoder: fingerprint of its encoder.

    Raises:
        ValueError: options contradict each other, or the URL is none.
    """
    given = {name: value for name, value in vars(options).items() if value != getattr(EngineOptions(), name)}
    if options.engine is None:
        if given:
            raise ValueError(f"`{next(iter(given))}` is for an `engine`: name that too, or leave it out.")
        return None
    url = options.engine_url or ""
    kind = _kind(url)
    if not kind.is_shared and options.engine_collection is not None:
        raise ValueError("`engine_collection` is for a server, and a folder holds one collection: leave it out.")
    name = _NOT_IN_NAMES.sub("_", options.engine_collection or out.resolve().name) if kind.is_shared else ""
    if url and not kind.is_shared:
        url = str(Path(url).resolve())
    made_from = json.dumps([socket.gethostname(), str(out.resolve()), encoder, options.engine_quantization])
    owner = hashlib.sha256(made_from.encode()).hexdigest()[:32]
    return EngineMetadata(options.engine, url, name, owner, options.engine_quantization)


def connect(engine: EngineMetadata, folder: Path) -> Collection:
    """Connect to the collection of a place index, which the first call reaches.

    Args:
        folder: that of the place index.

    Raises:
        ValueError: the client is not installed, or the URL is none.
    """
    kind = _kind(engine.url)
    if find_spec(kind.module) is None:
        raise ValueError(f"The engine {engine.name} needs the package {kind.package}: pip install 'progeo[qdrant]'.")
    return kind.connect(engine, folder)


def check_free(engine: EngineMetadata, folder: Path, *, width: int, num_processes: int) -> None:
    """Check that the collection of a new place index can be created, or was by a command that was killed.

    Args:
        folder: folder of the index.
        width: dimensions of its descriptors.
        num_processes: number of processes that will store descriptors.

    Raises:
        ConnectionError: the engine cannot be reached.
        ValueError: the collection is that of another index, its client is not installed, or there are too many
            processes.
    """
    if num_processes > 1 and not _kind(engine.url).is_shared:
        raise ValueError(f"Qdrant Edge is for one process, not {num_processes}: name a server with `engine_url`.")
    collection = connect(engine, folder)
    if collection.contents() is not None:
        check_owner(collection, engine, width=width)


def check_owner(collection: Collection, engine: EngineMetadata, *, width: int | None = None) -> None:
    """Check that a collection is that of a place index.

    Args:
        width: dimensions of its descriptors; None for any.

    Raises:
        ValueError: it is gone, that of another index, or has other dimensions.
    """
    held, place = collection.contents(), collection.place
    if held is None:
        raise ValueError(f"There is no {place.removeprefix('the ')}: restore it, or build the index anew.")
    if held.owner != engine.owner:
        raise ValueError(
            f"Another place index, or one of another encoder, is in {place}: name another `engine_url` or "
            f"`engine_collection`, or delete it."
        )
    if width not in (None, held.width):
        raise ValueError(
            f"Descriptors of {width} dimensions do not fit into {place}, which has {held.width}: build the index anew."
        )


def _kind(url: str) -> _Kind:
    scheme = MEMORY if url == MEMORY else _scheme(url)
    if scheme is None or scheme not in _KINDS:
        raise ValueError(
            f"`engine_url` must begin with http:// or https://, then a host, or be a folder or {MEMORY}, got {url!r}. "
            f"Use for example http://127.0.0.1:6333."
        )
    return _KINDS[scheme]


def _scheme(url: str) -> str | None:
    """Return the scheme of a URL, empty for a folder; None if it has a scheme without a host, or no valid port."""
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) >= bool(parts.scheme) and parts.port != 0
    except ValueError:
        return None
    return parts.scheme if is_valid else None
