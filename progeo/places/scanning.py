"""Find the images of folders once, parse their names, and write catalogues that later commands map into memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from progeo.atomic import replacing
from progeo.places.catalogue import SEARCH_VERSION, Catalogue, catalogue_writer, index_file, open_catalogue
from progeo.places.listings import listed_paths
from progeo.places.parsing import parsed_in_turn
from progeo.places.paths import find_paths
from progeo.remote_files import RemotePath


def index_catalogue(
    folder: Path | RemotePath,
    out: Path | None = None,
    *,
    listings: Sequence[Path] = (),
    check: Callable[[Catalogue], object] | None = None,
) -> Path:
    """Find the images of a folder, parse their names and write the folder's index.

    Args:
        folder: images at any depth.
        out: path to use in place of the folder from now on, with the index next to it; None uses the folder itself.
        listings: files that list the images, see `listed_paths`, in place of a search; they may be removed afterwards.
        check: called with the new catalogue; an error it raises keeps the index from being written.

    Returns:
        The path of the index.

    Raises:
        FileNotFoundError, ValueError: as `read_catalogue`, `listed_paths` and `check`.
        OSError: the index cannot be written.
    """
    metadata: dict[str, Any] = {"rules": SEARCH_VERSION}
    if listings:
        paths = listed_paths(listings, folder)
    else:
        found = find_paths(folder)
        paths, metadata["seen"], metadata["list"] = found.batches, found.seen, found.list_changed_ns
    if isinstance(folder, RemotePath):
        if out is None:
            raise ValueError(f"Name `out`, the path of the catalogue that stands for {folder}.")
        metadata["root"] = str(folder)
        index = index_file(out)
    else:
        index = index_file(out or folder)
        if index != index_file(folder):
            metadata["root"] = str(folder.absolute())  # unresolved: the list of images lies next to a link
    write_index(index, parsed_in_turn(folder, paths), folder, metadata, check)
    return index


def write_index(
    index: Path,
    batches: Iterator[pa.RecordBatch],
    root: Path | RemotePath,
    metadata: Mapping[str, Any],
    check: Callable[[Catalogue], object] | None,
) -> None:
    """Write batches of images as an index, without having all of them in memory; see `index_catalogue`."""
    first = next(batches)
    with replacing(index) as temporary:
        with catalogue_writer(temporary, first.schema, metadata) as writer:
            for batch in chain([first], batches):
                writer.write_batch(batch)
        if check is not None:
            check(open_catalogue(temporary, root))
