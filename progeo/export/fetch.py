"""Download folders of encoders from a URL or from the Hugging Face Hub."""

import hashlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

import torch

from progeo.atomic import replacing
from progeo.export.downloads import Limits, download
from progeo.printable import first_line, printable


def fetch_folder(
    address: str, readers: Mapping[str, Callable[[Path], object]], *, limits: Limits | None = None
) -> Path:
    """Download the files of a remote folder and return the local folder; cached files are not downloaded again.

    Args:
        address: `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION` of the Hugging Face Hub, cached by its own package;
            or the URL of a folder, to which `/` and a file's name are appended, cached in `progeo` below
            `torch.hub.get_dir()`. Remove a cached file to download its current version.
        readers: file name -> function that reads a downloaded file and raises ValueError if it is corrupt; files of the
            Hub are not read.
        limits: limits on downloads from a URL; None takes the defaults. The Hub's package has its own.

    Raises:
        FileNotFoundError: a file cannot be downloaded, is corrupt, or exceeds the limits; nothing of it is kept.
    """
    if address.startswith("hf-hub:"):
        return _from_hub(address.removeprefix("hf-hub:"), list(readers))
    address = address.rstrip("/")
    folder = Path(torch.hub.get_dir()) / "progeo" / hashlib.sha256(address.encode()).hexdigest()[:16]
    for name, read in readers.items():
        if not (folder / name).is_file():
            _download(f"{address}/{name}", folder / name, read, limits or Limits())
    return folder


def _from_hub(repository: str, names: list[str]) -> Path:
    from huggingface_hub import hf_hub_download

    owner_and_name, _, revision = repository.partition("@")
    try:
        paths = [hf_hub_download(owner_and_name, name, revision=revision or None) for name in names]
    except Exception as error:  # network errors, missing repositories or files, invalid names
        reason = first_line(error, type(error).__name__)
        raise FileNotFoundError(f"{repository} could not be fetched from the Hugging Face Hub: {reason}.") from None
    return Path(paths[0]).parent


def _download(url: str, path: Path, read: Callable[[Path], object], limits: Limits) -> None:
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as stream:
                download(url, stream, path, limits)
            try:
                read(temporary)
            except ValueError:
                raise HTTPException(f"the downloaded {path.name} is corrupt or incomplete") from None
    except (OSError, HTTPException, ValueError) as error:
        raise FileNotFoundError(f"{url} could not be fetched: {printable(str(error))}.") from None
