"""Recursive search for image files behind a URL, by the rules of `progeo.places.folders`."""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from progeo.image_files import EXTENSIONS, UNREAD_EXTENSIONS
from progeo.places.folders import OF_SYSTEMS, Scan, utf8_paths
from progeo.progress import Progress
from progeo.remote_files import RemotePath

_LOGGER = logging.getLogger("progeo")
_THREADS = 16
_ENDS_PATH = "::"
"""What a name of a URL cannot hold, as it begins the archive that a path lies in."""


def scan_remote_folder(folder: RemotePath) -> Scan:
    """Search a folder behind a URL and all folders below it, each by requests of its own, 16 at the same time.

    Raises:
        OSError: a folder cannot be listed.
        ValueError: no installed package opens such URLs.
    """
    scan, unnamed = Scan(), list[str]()
    threads = _THREADS if folder.is_parallel else 1
    with ThreadPoolExecutor(threads) as pool, Progress(f"finding images in {folder}", leave=True) as bar:
        waiting: dict[Future[list[tuple[str, bool]]], str] = {pool.submit(folder.entries): ""}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    images, folders = _noted(scan, waiting.pop(future), future.result(), unnamed)
                    scan.parts.append(utf8_paths(images))
                    bar.update(len(images))
                    waiting |= {pool.submit((folder / below).entries): below for below in folders}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if unnamed:
        _LOGGER.warning(
            "%s: %d names with %s, which no URL can hold, are skipped, such as %s",
            *(folder, len(unnamed), _ENDS_PATH, min(unnamed)),
        )
    return scan


def _noted(scan: Scan, parent: str, entries: list[tuple[str, bool]], unnamed: list[str]) -> tuple[list[str], list[str]]:
    """Return the images and folders among the entries of a folder, by path; note the other ones that matter."""
    images, folders = [], []
    for name, is_folder in entries:
        path, lower = f"{parent}/{name}" if parent else name, name.lower()
        is_image = lower.endswith(EXTENSIONS)
        if name.startswith(".") or (is_folder and lower in OF_SYSTEMS):
            if is_image or is_folder:
                scan.hidden.append(path)
        elif _ENDS_PATH in name and (is_folder or is_image):
            unnamed.append(path)
        elif is_folder:
            folders.append(path)
        elif is_image:
            images.append(path)
        elif (ending := f".{lower.rpartition('.')[2]}") in UNREAD_EXTENSIONS:
            scan.unread[ending] += 1
    return images, folders
