"""Write copies of photos with their estimated positions in EXIF."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from progeo.engine.log import LOGGER
from progeo.files import check_can_be_written, common_folder, write_new
from progeo.localization.exif import Position, with_position
from progeo.localization.localizations import Localization
from progeo.printable import first_line
from progeo.progress import followed


def plan_copies(photos: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Return where the copy of each photo goes, by its path as text: below `folder` as below the photos' own folder.

    Raises:
        FileExistsError: one exists already.
        OSError: `folder` is a file, or cannot be created.
    """
    absolute = {str(photo): photo.parent.resolve() / photo.name for photo in photos}
    source = common_folder(absolute.values())
    copies = {text: folder / photo.relative_to(source) for text, photo in absolute.items()}
    if existing := next((copy for copy in copies.values() if copy.exists() or copy.is_symlink()), None):
        raise FileExistsError(f"{existing} exists already: name another folder with `write_exif`.")
    for copy in copies.values():
        check_can_be_written(copy)
    return copies


def write_copies(results: Sequence[Localization], copies: Mapping[str, Path]) -> int:
    """Write copies of the photos whose positions are known, and return their number; why others fail is logged.

    Only EXIF metadata change: the encoded pixels are the same bytes.

    Args:
        copies: result of `plan_copies`.
    """
    written = set()
    for result in followed(results, "writing copies", total=len(results)):
        if not (result.known and result.can_be_mapped) or copies[result.query] in written:
            continue
        try:
            content = with_position(Path(result.query).read_bytes(), _position(result))
            write_new(copies[result.query], content)
        except (ValueError, OSError) as error:
            LOGGER.warning("no copy of %s is written: %s", result.query, first_line(error))
            continue
        written.add(copies[result.query])
    return len(written)


def _position(result: Localization) -> Position:
    assert result.latitude is not None and result.longitude is not None and result.radius_m is not None
    method = f"progeo visual localization, within {result.radius_m:g} m with probability {result.confidence:.2f}"
    return Position(result.latitude, result.longitude, result.radius_m, method)
