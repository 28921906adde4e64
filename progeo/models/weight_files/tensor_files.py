"""Read safetensors files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from progeo.printable import printable


def is_safetensors(path: Path) -> bool:
    """Return whether a file is a safetensors file, from its suffix or its first bytes.

    Files in the cache of the Hugging Face Hub are named by their digests, without a suffix.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return path.suffix == ".safetensors"
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"  # after the 8-byte length of the header


def read_metadata(path: Path) -> Mapping[str, str]:
    """Read the metadata of a safetensors file; empty for other files.

    Raises:
        ValueError: the file is corrupt.
    """
    if not is_safetensors(path):
        return {}
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Load all tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: the file is corrupt.
    """
    with reading_safetensors(path):
        return load_file(path)


@contextmanager
def reading_safetensors(path: Path) -> Iterator[None]:
    """Convert the errors of the library, which do not name the file.

    Raises:
        ValueError: the file is corrupt.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {printable(str(error))}.") from None
