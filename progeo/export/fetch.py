"""Folders of encoders that lie elsewhere: at an address, or on the Hugging Face Hub."""

import hashlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

import torch

from progeo.export.downloads import Limits, download
from progeo.files import replacing
from progeo.models.weight_files.unpickler import printable

TIMEOUT_S = 60


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
        with replacing(path) as temporary:
            with temporary.open("wb") as stream:
                download(url, stream, path, limits)
            try:
                read(temporary)
            except ValueError:
                raise HTTPException(f"what came is no whole {path.name}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise FileNotFoundError(f"{url} could not be fetched: {printable(str(error))}.") from None
