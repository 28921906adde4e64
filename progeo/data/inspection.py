"""Looking at image files one by one: can they be read, how large are they, are two of them the same."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from progeo.data.decode import decode_image
from progeo.files import each_file
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class Inspection:
    """What a file is."""

    digest: bytes
    """Of what is in it, 16 bytes; none where there is no such file."""
    size: tuple[int, int] | None = None
    """Height and width in pixels once upright; None where it cannot be decoded."""
    reason: str = ""
    """Why it cannot."""


def inspect_images(catalogue: Catalogue) -> Iterator[Inspection]:
    """Read and decode every image once, in parallel, in the order of the catalogue."""
    return each_file(
        lambda name: inspect_image(catalogue.folder / name),  # reading, hashing, decoding: outside of Python's lock
        map(catalogue.name, range(len(catalogue))),
        total=len(catalogue),
        description=f"reading {catalogue.folder}",
    )


def inspect_image(path: Path) -> Inspection:
    """Read a file and decode all of it."""
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
