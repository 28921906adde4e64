"""Read the descriptors of database and queries from another program's files."""

from pathlib import Path

from progeo.datasets.query_sets import QuerySet
from progeo.features.store import ShardedRows, can_be_compared, load_array
from progeo.places.catalogue import Catalogue

_ROWS_AT_ONCE = 2**12


def read_descriptors(folder: Path, query_set: QuerySet) -> tuple[ShardedRows, ShardedRows]:
    """Read the descriptors of database (N, D) and queries (Q, D) that another program wrote to a folder.

    Raises:
        FileNotFoundError: `database_descriptors.npy` or `queries_descriptors.npy` does not exist.
        ValueError: a file does not hold one finite row per image, or database and queries differ in dimension.
    """
    database = _read_rows(folder / "database_descriptors.npy", query_set.database)
    queries = _read_rows(folder / "queries_descriptors.npy", query_set.queries)
    if database.width != queries.width:
        raise ValueError(
            f"The database descriptors in {folder} have {database.width} dimensions, those of the queries "
            f"{queries.width}: extract both with the same encoder."
        )
    return database, queries


def _read_rows(path: Path, images: Catalogue) -> ShardedRows:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    values = load_array(path, mapped=True)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold numbers, such as float32, got {values.dtype}.")
    if values.ndim != 2 or len(values) != len(images):
        raise ValueError(
            f"{path} must hold a row for each of the {len(images):,} images of {images.folder}, got {values.shape}."
        )
    for start in range(0, len(values), _ROWS_AT_ONCE):
        if not (comparable := can_be_compared(values[start : start + _ROWS_AT_ONCE])).all():
            row = start + int(comparable.argmin())
            raise ValueError(f"{path} holds numbers that are not finite, or too large to compare, in row {row}.")
    return ShardedRows(
        path.parent,
        num_rows=len(values),
        width=values.shape[1],
        shard_size=len(values),
        dtype=values.dtype.name,
        file_name=path.name,
    )
