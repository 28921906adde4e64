"""Inspection of single image files: whether they can be decoded, their size, and whether two are identical."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progeo.data.decode import decode_image
from progeo.files import each_file
from progeo.places.catalogue import Catalogue
from progeo.remote_files import RemotePath


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a file."""

    digest: bytes
    """Hash of the content, 16 bytes; empty if the file cannot be read."""
    size: tuple[int, int] | None = None
    """Height and width in pixels when upright; None if the file cannot be decoded."""
    reason: str = ""
    """Why the file cannot be read or decoded; empty if it can."""


def inspect_images(catalogue: Catalogue, rows: np.ndarray) -> Iterator[Inspection]:
    """Read and decode the images at some rows once each, in parallel, in their order."""
    return each_file(
        lambda row: _inspected(catalogue, row),  # reading, hashing and decoding release the GIL
        rows.tolist(),
        total=len(rows),
        description=f"reading {catalogue.folder}",
    )


def _inspected(catalogue: Catalogue, row: int) -> Inspection:
    try:
        path = catalogue.path(row)
    except ValueError as error:  # a URL that is refused
        return Inspection(b"", reason=str(error))
    return inspect_image(path)


def inspect_image(path: Path | RemotePath) -> Inspection:
    """Read a file completely and decode it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Inspection(b"", reason=error.strerror or str(error))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        _, height, width = decode_image(io.BytesIO(content)).shape
    except ValueError as error:
        return Inspection(digest, reason=str(error))
    return Inspection(digest, (height, width))
