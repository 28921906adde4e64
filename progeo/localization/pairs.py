"""Write pairs of photos and their matches for hloc and COLMAP, which find camera poses by local features."""

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from progeo.files import write_text
from progeo.localization.localizations import Localization
from progeo.printable import printable


def write_pairs(path: Path, results: Sequence[Localization], folder: Path | None = None) -> None:
    """Write a line `photo match` for every match of every photo.

    hloc reads it as its pairs, COLMAP as its list of image pairs. Both take names relative to their folder of images
    and separate them by spaces.

    Args:
        folder: see `pair_names`.

    Raises:
        ValueError: see `pair_names`.
    """
    pairs = [(result.query, match.path) for result in results for match in result.matches]
    _, names = pair_names(chain.from_iterable(pairs), folder)
    lines = [f"{names[photo]} {names[match]}\n" for photo, match in pairs if names[photo] != names[match]]
    write_text(path, "".join(lines))


def pair_names(paths: Iterable[str], folder: Path | None) -> tuple[Path, dict[str, str]]:
    """Name images as files of pairs do.

    Folders are resolved as those of an index are, so that a link to an image keeps its name.

    Args:
        folder: folder that holds all images; None takes the deepest.

    Returns:
        The folder, and the name of each image relative to it, by path.

    Raises:
        ValueError: an image is not in the folder, or its name has a space or begins with #.
    """
    split = {path: os.path.split(path) for path in paths}
    parents = {parent: Path(parent).resolve() for parent in {parent for parent, _ in split.values()}}
    if folder is None:
        folder = Path(os.path.commonpath(parents.values())) if parents else Path("/")
    folder = folder.resolve()
    names = {}
    for path, (parent, name) in split.items():
        if not parents[parent].is_relative_to(folder):
            raise ValueError(f"{path} is not in {folder}: `pairs_folder` must hold all photos and images of the index.")
        names[path] = (parents[parent].relative_to(folder) / name).as_posix()
        if names[path].split() != [names[path]] or names[path].startswith("#"):
            raise ValueError(
                f"{printable(names[path])} cannot be in a file of pairs, where spaces separate names and # begins a "
                f"comment: rename it, or take another `pairs_folder`."
            )
    return folder, names
