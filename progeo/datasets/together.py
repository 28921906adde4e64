"""One catalogue of the images of several folders, with the positions and columns that each has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from progeo.datasets.merge import TEXTS, table_below
from progeo.disk import make_folder
from progeo.places.catalogue import (
    SEARCH_VERSION,
    Catalogue,
    count_repeated,
    index_file,
    metadata_of,
    open_catalogue,
    read_catalogue,
)
from progeo.places.folders import changed_ns
from progeo.places.geographic import degrees_of
from progeo.places.parsing import COLUMNS
from progeo.places.paths import list_of
from progeo.places.scanning import index_catalogue, write_index
from progeo.remote_files import RemotePath, is_remote, name_in, shared_folder

_ROWS_AT_ONCE = 2**20
_COLUMNS = (
    *((name, pa.scalar(np.nan, pa.float64())) for name in ("latitude", "longitude")),
    *((name, pa.scalar("", pa.large_string())) for name in TEXTS),
)
"""Columns that only some of the catalogues may have, and their value for images of the others."""


@dataclass(frozen=True)
class _Source:
    """One of the folders."""

    catalogue: Catalogue
    """Its images, mapped into memory."""
    seen: Mapping[str, int | None]
    """Modification times by which later changes are detected, by path: relative to its folder or absolute."""


def index_together(
    folders: Sequence[Path | RemotePath], out: Path, *, check: Callable[[Catalogue], object] | None = None
) -> Path:
    """Write one index of the images of several folders, one after another, without having all of them in memory.

    Args:
        folders: searched as by `index_catalogue`, but those that have an index, whose columns are kept.
        out: path that stands for all of them, with the index next to it.
        check: see `index_catalogue`.

    Returns:
        The path of the index.

    Raises:
        FileNotFoundError, ValueError, OSError: as `index_catalogue` and `read_catalogue`; images are there twice.
    """
    index = index_file(out)
    make_folder(index.absolute().parent)
    with TemporaryDirectory(
        prefix=f".{out.name}_", dir=index.absolute().parent, ignore_cleanup_errors=True
    ) as scratch:  # Windows removes no file that is mapped
        sources = [_opened(folder, Path(scratch) / str(number)) for number, folder in enumerate(folders)]
        roots = [source.catalogue.folder.resolve() for source in sources]
        root = shared_folder(roots)
        names = [name_in(root, each) for each in roots]

        def check_all(catalogue: Catalogue) -> None:
            if twice := count_repeated(catalogue.table["path"]):
                raise ValueError(f"{twice:,} images are in the given folders twice: name folders that share none.")
            if check is not None:
                check(catalogue)

        seen = {
            f"{name}/{path}" if not Path(path).is_absolute() else path: changed
            for name, source in zip(names, sources, strict=True)
            for path, changed in source.seen.items()
        }
        metadata = {
            "root": str(root),
            "folders": [str(each if isinstance(each, RemotePath) else each.absolute()) for each in folders],
            "seen": seen,
            "rules": SEARCH_VERSION,
        }
        write_index(index, _batches(sources, names), root, metadata, check_all)
    return index


def _opened(folder: Path | RemotePath, scratch: Path) -> _Source:
    """Open the catalogue of a folder by its index, which is written to a scratch path if there is none."""
    if isinstance(folder, Path) and index_file(folder).is_file():
        index = index_file(folder).absolute()
        return _Source(read_catalogue(folder), {**metadata_of(index).get("seen", {}), str(index): changed_ns(index)})
    metadata = metadata_of(index_catalogue(folder, scratch))
    seen = dict(metadata.get("seen", {}))
    if isinstance(folder, Path):
        seen[str(list_of(folder).absolute())] = metadata.get("list")
    return _Source(open_catalogue(index_file(scratch), folder), seen)


def _batches(sources: Sequence[_Source], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the images of all sources with the same columns: those of texts and degrees that any of them has."""
    held = {name for source in sources for name in source.catalogue.table.column_names}
    if any(map(is_remote, names)):  # degrees are not parsed from URLs
        held |= {"latitude", "longitude"}
    kept = [name for name, _ in _COLUMNS if name in held]
    for source, name in zip(sources, names, strict=True):
        catalogue = source.catalogue
        degrees = degrees_of(catalogue) if "latitude" in held else np.full((2, len(catalogue)), np.nan)
        for start in range(0, len(catalogue), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            piece = Catalogue(catalogue.folder, catalogue.table[rows])
            table = table_below(piece, name, degrees=degrees[:, rows])
            for column, absent in _COLUMNS:
                if column in kept and column not in table.column_names:
                    table = table.append_column(column, pa.repeat(absent, len(piece)))
            yield from table.select(["path", *COLUMNS, *kept]).combine_chunks().to_batches()
