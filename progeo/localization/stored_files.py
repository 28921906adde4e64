"""Files of a place index by size and digests: opening reads a bounded share of each, a check reads all."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from progeo.files import file_digest

OTHER_CONTENT = "index.json has the digest of other content"
WHOLE_BYTES = 2**24
"""Files up to 16 MiB are read completely when they are opened."""
_SAMPLE_BYTES = 2**18
_NUM_SAMPLES = 16
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class StoredFile:
    """A file as it was written."""

    size: Annotated[int, Meta(ge=0, lt=2**60)]
    """Bytes."""
    digest: _Digest
    """`file_digest` of all of it."""
    sample: _Digest
    """Digest of what opening reads: all of a file of 16 MiB or less, else 16 blocks of 256 KiB from start to end."""


def stored_file(path: Path) -> StoredFile:
    """Compute size and digests of a file that was written."""
    return StoredFile(path.stat().st_size, file_digest(path), _sample(path))


def check_file(path: Path, stored: StoredFile, folder: Path, *, completely: bool = False) -> None:
    """Check that a file of a place index is the one that was written; folder and errors as of `check_present`.

    Args:
        completely: read all of it, not only a sample of a large one.

    Raises:
        ValueError: it has another content.
    """
    check_present(path, folder)
    if (size := path.stat().st_size) != stored.size:
        raise corrupt(path, f"it has {size:,} bytes and was written with {stored.size:,}")
    digest, expected = (file_digest(path), stored.digest) if completely else (_sample(path), stored.sample)
    if digest != expected:
        raise corrupt(path, OTHER_CONTENT)


def check_present(path: Path, folder: Path) -> None:
    """Check that a file of a place index is there.

    Args:
        folder: folder of the index, which no link may lead out of.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is a link out of the folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put it back, or build the index anew.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of its folder, to {path.resolve()}: put the file itself there.")


def corrupt(path: Path, reason: str) -> ValueError:
    """Return the error of a file that is not the one that was written."""
    return ValueError(f"{path} is corrupt: {reason}. Put the file back, or build the index anew.")


def _sample(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_digest(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for number in range(_NUM_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
