"""Folders of encoders that lie elsewhere: at an address, or on the Hugging Face Hub."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import torch

from progeo.export.downloads import Limits, Patience, open_url
from progeo.files import replacing
from progeo.models.weight_files.unpickler import printable

TIMEOUT_S = 60
_LENGTH = 8
"""Bytes at the beginning of a .safetensors file that say the length of its header."""
_PART = 1 << 20


def fetch_folder(
    address: str, readers: Mapping[str, Callable[[Path], object]], *, limits: Limits | None = None
) -> Path:
    """Fetch files that lie side by side and return the folder with them; what was fetched before is not fetched again.

    Args:
        address: `hf-hub:OWNER/NAME` of the Hugging Face Hub, or `hf-hub:OWNER/NAME@REVISION`, kept where its own
            package keeps it; or the URL of a folder, to which `/` and a file's name are appended, kept below `progeo`
            in `torch.hub.get_dir()`. What changed at a URL is fetched again where that is removed.
        readers: of each file by its name; they raise ValueError where it is not whole.
        limits: of what comes from a URL; None takes the usual ones. The package of the Hub has its own.

    Raises:
        FileNotFoundError: a file that cannot be fetched, or is larger or slower than allowed; nothing is kept of it.
    """
    if address.startswith("hf-hub:"):
        return _from_hub(address.removeprefix("hf-hub:"), list(readers))
    address = address.rstrip("/")
    folder = Path(torch.hub.get_dir()) / "progeo" / hashlib.sha256(address.encode()).hexdigest()[:16]
    for name, read in readers.items():
        if not (folder / name).is_file():
            _download(f"{address}/{name}", folder / name, read, limits or Limits(stalled_s=TIMEOUT_S))
    return folder


def _from_hub(repository: str, names: list[str]) -> Path:
    from huggingface_hub import hf_hub_download

    owner_and_name, _, revision = repository.partition("@")
    try:
        paths = [hf_hub_download(owner_and_name, name, revision=revision or None) for name in names]
    except Exception as error:  # of the network, of the repository, of a name that can be none
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{repository} could not be fetched from the Hugging Face Hub: {printable(reason)}"
        ) from None
    return Path(paths[0]).parent


def _download(url: str, path: Path, read: Callable[[Path], object], limits: Limits) -> None:
    try:
        patience = Patience(limits)
        with open_url(url, patience) as response, replacing(path) as temporary:
            with temporary.open("wb") as stream:
                _copy(response, stream, path, limits, patience)
            # Reading in pieces ends without a word where the connection does.
            announced, found = _announced(response), temporary.stat().st_size
            if announced is not None and found != announced:
                raise HTTPException(f"it broke off after {found:,} of {announced:,} bytes")
            try:
                read(temporary)
            except ValueError:
                raise HTTPException(f"what came is no whole {path.name}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise FileNotFoundError(f"{url} could not be fetched: {printable(str(error))}.") from None


def _copy(response: HTTPResponse, stream: BinaryIO, path: Path, limits: Limits, patience: Patience) -> None:
    """Write what a server sends, no more than it may be.

    Raises:
        HTTPException: it is more, or would be.
    """
    beginning, most = response.read(_LENGTH), limits.small_bytes
    header_bytes = int.from_bytes(beginning, "little")
    if path.suffix == ".safetensors" and 0 < header_bytes <= limits.small_bytes:
        header = response.read(header_bytes)
        most = _LENGTH + header_bytes + _bytes_of_tensors(header)
        beginning += header
        if most > limits.large_bytes:
            raise HTTPException(f"it says that it has {most:,} bytes, at most {limits.large_bytes:,} are fetched")
        if most > (free := shutil.disk_usage(path.parent).free):
            raise HTTPException(f"it says that it has {most:,} bytes, {path.parent} has room for {free:,}")
        patience.wait_for(most)
    announced = _announced(response)
    if announced is not None and announced > most:
        raise HTTPException(f"the server announces {announced:,} bytes, a {path.name} like this has at most {most:,}")
    stream.write(beginning)
    left = most - len(beginning)
    while part := response.read(min(_PART, left + 1)):
        left -= len(part)
        if left < 0:
            raise HTTPException(f"the server sends more than {most:,} bytes, which a {path.name} like this has at most")
        stream.write(part)


def _announced(response: HTTPResponse) -> int | None:
    """How many bytes a server says that it sends."""
    announced = response.headers["Content-Length"]
    return None if announced is None else int(announced)


def _bytes_of_tensors(header: bytes) -> int:
    """How many bytes follow the header of a .safetensors file, as it says itself; 0 where it is none."""
    try:
        tensors = json.loads(header)
        return max(int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return 0
