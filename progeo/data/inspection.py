"""Looking at image files one by one: can they be read, how large are they, are two of them the same."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from progeo.places.catalogue import Catalogue

_AT_ONCE = 4096


@dataclass(frozen=True)
class Inspection:
    """What a file is."""

    digest: bytes
    """Of what is in it, 16 bytes; none where there is no such file."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None where it cannot be decoded."""
    reason: str = ""
    """Why it cannot."""


def inspect_images(catalogue: Catalogue) -> Iterator[Inspection]:
    """Read and decode every image once, in parallel, in the order of the catalogue."""
    bar = tqdm(desc=f"reading {catalogue.folder}", total=len(catalogue), unit="img", disable=None)
    with ThreadPoolExecutor() as pool, bar:  # reading, hashing and decoding happen outside of Python's lock
        for start in range(0, len(catalogue), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(catalogue)))
            for inspection in pool.map(inspect_image, map(catalogue.path, rows)):
                bar.update()
                yield inspection


def inspect_image(path: Path) -> Inspection:
    """Read a file and decode all of it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Inspection(b"", reason=error.strerror or str(error))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return Inspection(digest, (image.height, image.width))
    except Exception as error:  # decoders fail in many ways
        return Inspection(digest, reason=str(error))
