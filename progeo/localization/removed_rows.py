"""The rows of a place index that are removed, until it is compacted."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from progeo.atomic import replacing
from progeo.features.store import load_array
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.stored_files import stored_file


def open_removed(folder: Path, metadata: IndexMetadata) -> np.ndarray:
    """Read the removed rows of a place index, sorted, int64 (r,).

    Raises:
        ValueError: the file is not as progeo writes it.
    """
    if not metadata.removed_file:
        return np.empty(0, np.int64)
    rows = load_array(path := folder / metadata.removed_file)
    is_sound = rows.dtype == np.int64 and rows.shape == (metadata.num_removed,) and (np.diff(rows) > 0).all()
    if not is_sound or rows[0] < 0 or rows[-1] >= metadata.num_rows:
        raise ValueError(f"{path} does not hold the {metadata.num_removed:,} removed rows: build the index anew.")
    return rows


def with_removed(metadata: IndexMetadata, path: Path, rows: np.ndarray) -> IndexMetadata:
    """Write removed rows, sorted, int64 (r,), to a new file, and return metadata that name it."""
    with replacing(path) as temporary:
        np.save(temporary, rows)
    files = {name: file for name, file in metadata.files.items() if name != metadata.removed_file}
    files[path.name] = stored_file(path)
    return replace(metadata, removed_file=path.name, num_removed=len(rows), files=files)
