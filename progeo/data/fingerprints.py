"""Fingerprints of the images and files that a result was made with, to tell whether they are still the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from progeo.data.contents import contents_fingerprint
from progeo.files import file_digest
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.remote_files import RemotePath

_WORDS = {
    "images": "the number of images in",
    "image_list": "the names of the images in",
    "image_places": "the positions or headings of the images in",
    "image_contents": "the contents of the images in",
    "file": "the file",
}


def data_fingerprints(catalogue: Catalogue) -> dict[str, Any]:
    """Return number, names, positions if any is known, and contents (a sample; not behind URLs) of images."""
    has_places = np.isfinite(catalogue.east).any()
    return {
        "images": len(catalogue),
        "image_list": catalogue.fingerprint,
        **({"image_places": catalogue.places_fingerprint} if has_places else {}),
        **({} if isinstance(catalogue.folder, RemotePath) else {"image_contents": contents_fingerprint(catalogue)}),
    }


def file_fingerprint(file: Path) -> dict[str, Any]:
    """Return a digest of a file, such as the weights of an encoder."""
    return {"file": file_digest(file)}


def changed_data(before: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in a sentence which images or files are not those they were, or cannot be read; empty if all are the same.

    Args:
        before: what `data_fingerprints` returned, by folder, and `file_fingerprint`, by file.
    """
    changes = []
    for name, known in before.items():
        try:
            now = _fingerprints_now(Path(name), known)
        except (OSError, ValueError) as error:
            return str(error)
        differing = {what for what in known.keys() & now.keys() if known[what] != now[what]}
        changes += [f"{words} {name}" for what, words in _WORDS.items() if what in differing]
    return f"These are not as they were: {', '.join(changes)}." if changes else ""


def _fingerprints_now(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    return file_fingerprint(path) if "file" in known else data_fingerprints(read_catalogue(path, positions="optional"))
