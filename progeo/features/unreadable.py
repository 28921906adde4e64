"""Images that cannot be read: listed in a file beside each file of features, reported, and refused if too many."""

from collections.abc import Mapping
from pathlib import Path

from progeo.engine.log import LOGGER
from progeo.features.store import ShardedRows
from progeo.files import write_json
from progeo.json_files import read_json_as
from progeo.places.catalogue import Catalogue

_MAX_REASONS_SHOWN = 10


def write_reasons(rows: ShardedRows, shard: int, reasons: Mapping[int, str], catalogue: Catalogue) -> None:
    """List in a file why images of a shard cannot be read, by row; without any, remove the file of an earlier run."""
    file = _file(rows, shard)
    if reasons:  # paths relative to the image folder, as it may be moved
        relative = {row: why.replace(str(catalogue.path(row)), catalogue.name(row)) for row, why in reasons.items()}
        write_json(file, relative)
    else:
        file.unlink(missing_ok=True)


def read_reasons(rows: ShardedRows, catalogue: Catalogue) -> dict[int, str]:
    """Read why images cannot be read, by row.

    Raises:
        ValueError: a file is corrupt; the message names it.
    """
    found: dict[int, str] = {}
    for shard in rows.shards:
        if not (file := _file(rows, shard)).is_file():
            continue
        advice = f"Remove it and {rows.path(shard).name} beside it, whose features are then extracted again."
        reasons = read_json_as(file, dict[int, str], advice=advice)
        if others := reasons.keys() - rows.shard_rows(shard):
            raise ValueError(f"{file} names row {min(others)}, of another file: it is corrupt. {advice}")
        found |= reasons
    return {row: reason.replace(catalogue.name(row), str(catalogue.path(row))) for row, reason in found.items()}


def check_unreadable(reasons: Mapping[int, str], allowed: int, num_images: int) -> None:
    """Refuse more than `allowed` unreadable images.

    Raises:
        ValueError: there are more; the message has the first reason.
    """
    if len(reasons) > allowed:
        raise ValueError(
            f"{len(reasons)} of {num_images} images cannot be read, more than `max_unreadable_fraction` allows: repair "
            f"or remove them, or raise it to continue without them. One of them: {next(iter(reasons.values()))}"
        )


def report_unreadable(reasons: Mapping[int, str], folder: Path, catalogue: Catalogue) -> None:
    """Log the images that cannot be read.

    Raises:
        ValueError: no image can be read.
    """
    if not reasons:
        return
    if len(reasons) == len(catalogue):
        raise ValueError(
            f"None of the {len(catalogue)} images of {catalogue.folder} can be read. One of them: {reasons[0]}"
        )
    LOGGER.warning(
        "%d of %d images cannot be read and are skipped; to include them, repair them and remove %s",
        len(reasons),
        len(catalogue),
        folder,
    )
    for reason in list(reasons.values())[:_MAX_REASONS_SHOWN]:
        LOGGER.warning("skipped: %s", reason)
    if len(reasons) > _MAX_REASONS_SHOWN:
        LOGGER.warning("and %d more, listed in %s", len(reasons) - _MAX_REASONS_SHOWN, folder / "unreadable_*.json")


def _file(rows: ShardedRows, shard: int) -> Path:
    return rows.folder / f"unreadable_{shard:05}.json"
