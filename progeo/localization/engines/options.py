"""The engine that searches a place index, chosen when it is built; no torch."""

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["qdrant"]
"""Engines that can search a place index instead of progeo."""
Quantization = Literal["none", "int8", "binary"]
"""How an engine compresses descriptors."""
MEMORY = ":memory:"
"""URL of the memory of this process."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine that stores and searches the descriptors of a place index."""

    engine: EngineName | None = None
    """Engine that stores and searches the descriptors: qdrant is a Qdrant server, or Qdrant Edge, which runs in this
    process. pip install 'progeo[qdrant]' installs its client. null stores them in the place index itself."""
    engine_url: str | None = None
    """Where the engine is. http://HOST:6333 or https://HOST:6333 is a server; the API key is read from the environment
    variable QDRANT_API_KEY, and sent only to the server that QDRANT_URL names. A folder is one of Qdrant Edge, which
    one process at a time can open; :memory: is the memory of this process, for tests. null is Qdrant Edge in the folder
    of the place index."""
    engine_collection: str | None = None
    """Name of the collection of a server, which holds this index only. null takes the name of the folder of the place
    index."""
    engine_quantization: Quantization = "none"
    """How the engine compresses descriptors: none; int8, a quarter of the size; binary, one bit for each dimension. The
    best rows are compared again with the original descriptors, which the engine keeps on disk."""
