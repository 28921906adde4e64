"""Write pairs of photos and their matches for hloc and COLMAP, which find camera poses by local features."""

from collections.abc import Sequence
from pathlib import Path

from progeo.files import common_folder, write_text
from progeo.localization.localizations import Localization
from progeo.printable import printable


def write_pairs(path: Path, results: Sequence[Localization], folder: Path | None = None) -> Path:
    """Write a line `photo match` for every match of every photo.

    hloc reads it as its pairs, COLMAP as its list of image pairs. Both take names relative to their folder of images
    and separate them by spaces.

    Args:
        folder: folder that holds all photos and matches; None takes the deepest.

    Returns:
        The folder that the names are relative to.

    Raises:
        ValueError: an image is not in the folder, or its name has a space or begins with #.
    """
    pairs = [(_absolute(result.query), _absolute(match.path)) for result in results for match in result.matches]
    images = list(dict.fromkeys(image for pair in pairs for image in pair))
    folder = folder.resolve() if folder is not None else common_folder(images)
    names = {image: _name(image, folder) for image in images}
    lines = [f"{names[photo]} {names[match]}\n" for photo, match in pairs if photo != match]
    write_text(path, "".join(lines))
    return folder


def _absolute(path: str) -> Path:
    """Resolve a folder as an index does, so that a link to an image keeps its name."""
    return Path(path).parent.resolve() / Path(path).name


def _name(image: Path, folder: Path) -> str:
    if not image.is_relative_to(folder):
        raise ValueError(f"{image} is not in {folder}: `pairs_folder` must hold all photos and images of the index.")
    name = image.relative_to(folder).as_posix()
    if name.split() != [name] or name.startswith("#"):
        raise ValueError(
            f"{printable(name)} cannot be in a file of pairs, where spaces separate names and # begins a comment: "
            f"rename it."
        )
    return name
