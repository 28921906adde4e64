"""Table files as columns: CSV as written by spreadsheets and programs, Parquet, and GeoJSON points."""

import csv
from collections.abc import Callable, Iterator, Sequence, Set
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.fs as pa_fs
import pyarrow.parquet as pa_parquet

from progeo.datasets.readers.mapped_tables import ROWS_AT_ONCE, joined
from progeo.files import read_json
from progeo.printable import first_line, printable

_DELIMITERS = (",", ";", "\t")
_MIN_MEMORY, _MEMORY_PER_BYTE = 2**30, 64
"""Memory that a Parquet file may take when it is read, in bytes: at least, and for each byte of the file."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_columns(file: Path, texts: Set[str], needs: Callable[[str], bool] = bool) -> pa.Table:
    """Read a table; all columns of a CSV are texts, unchanged, because 0001 and 1 are different names.

    A CSV may be delimited by commas, semicolons or tabs, whichever gives most columns in its first line, and encoded in
    UTF-8 or UTF-16. Unless the delimiter is a comma, numbers may have a decimal comma, which is replaced by a point.
    Rows of delimiters only, as spreadsheets leave them at the end, are skipped.

    Args:
        file: .csv, .tsv, .parquet or .geojson; or a folder of .parquet files at any depth, read in the order of their
            paths, where folders called NAME=VALUE are a column of texts, too, unless files have one of that name.
        texts: names of columns, in lower case, that hold no numbers.
        needs: returns whether a column of a folder of files is needed; the others are not read if any is.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format or is corrupt.
    """
    if not file.exists():
        raise FileNotFoundError(f"There is no table {file}.")
    try:
        if file.is_dir():
            return joined(_batches(file, needs))
        if file.suffix.lower() in (".csv", ".tsv"):
            return _read_csv(file, texts)
        if file.suffix.lower() == ".parquet":
            return _read_parquet(file)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid utf8" in str(error).lower():
            raise ValueError(f"{file} is not UTF-8: save it again, as CSV in UTF-8.") from None
        raise ValueError(f"{file} cannot be read: {first_line(error)}.") from None
    if file.suffix.lower() == ".geojson":
        return _read_geojson(file)
    raise ValueError(f"{file}: a table is a .csv, .tsv, .parquet or .geojson file, or a folder of .parquet files.")


def _read_csv(file: Path, texts: Set[str]) -> pa.Table:
    with file.open("rb") as content:
        encoding = "utf-16" if content.read(2) in _UTF_16 else "utf-8"
    with file.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding) as stream:
        line = next((line for line in stream if line.strip("\n")), "")  # Arrow ignores empty lines, too
    default = "\t" if file.suffix.lower() == ".tsv" else ","
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in (default, *_DELIMITERS)}
    delimiter = max(headers, key=lambda delimiter: len(headers[delimiter]))
    table = pa_csv.read_csv(
        file,
        read_options=pa_csv.ReadOptions(encoding=encoding),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(headers[delimiter], pa.large_string())),
    )
    table = table.filter(reduce(pc.or_, map(_is_filled, table.columns)))
    if delimiter == ",":
        return table
    columns = [
        column
        if name.strip().lower() in texts
        else pc.replace_substring_regex(column, r"^(\s*[-+]?\d+),(\d+\s*)$", r"\1.\2")
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, table.column_names)


def _read_parquet(file: Path) -> pa.Table:
    """Read a table with its texts in dictionaries until their size is known: a small file can repeat a text endlessly.

    Columns of lists and structs are skipped. The metadata of single column chunks are not asked for, since pyarrow
    aborts the process where they are damaged.

    Raises:
        MemoryError: the table takes far more memory than the size of the file suggests.
    """
    with pa_parquet.ParquetFile(file) as opened:
        names = [field.name for field in opened.schema_arrow if not pa.types.is_nested(field.type)]
        columns = [opened.schema.column(index) for index in range(len(opened.schema))]
        groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
    row_size = sum(max(8, column.length) for column in columns)
    size = file.stat().st_size
    _check_memory(sum(max(row_size * group.num_rows, group.total_byte_size) for group in groups), size)
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    with pa_parquet.ParquetFile(file, read_dictionary=texts) as opened:
        table = opened.read(names)
    _check_memory(_decoded_size(table), size)
    return _decoded(table)


def _batches(folder: Path, needs: Callable[[str], bool]) -> Iterator[pa.Table]:
    """Yield the rows of all Parquet files below a folder, in batches of the columns that any of them has.

    Raises:
        MemoryError: see `_read_parquet`.
        ValueError: there is none.
    """
    files = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file())
    if not files:
        raise ValueError(f"{folder}: a table is a file, or a folder of .parquet files, and there is none in it.")
    dataset = _dataset(folder, files)
    names = [field.name for field in dataset.schema if not pa.types.is_nested(field.type)]
    needed = list(filter(needs, names)) or names
    yield _decoded(dataset.schema.empty_table().select(needed))
    read, size = 0, sum(Path(file).stat().st_size for file in files)
    for batch in dataset.to_batches(columns=needed, batch_size=ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1):
        table = pa.Table.from_batches([batch])
        read += _decoded_size(table)
        _check_memory(read, size)
        yield _decoded(table)


def _dataset(folder: Path, files: Sequence[str]) -> pa_dataset.Dataset:
    """Open the Parquet files below a folder, with texts in dictionaries and with a column for each NAME of folders."""
    schemas = [pa_parquet.read_schema(file) for file in files]
    fields = [field for schema in schemas for field in schema]
    texts = {field.name for field in fields if _is_text(field.type)}
    form = pa_dataset.ParquetFileFormat(read_options=pa_dataset.ParquetReadOptions(dictionary_columns=sorted(texts)))
    folders = dict.fromkeys(part for file in files for part in Path(file).relative_to(folder).parent.parts)
    keys = {key: pa.string() for key, is_key, _ in (part.partition("=") for part in folders) if is_key}
    for field in fields:
        keys.pop(field.name, None)  # the values in the files
    options = pa_dataset.FileSystemFactoryOptions(
        partitioning=pa_dataset.HivePartitioning(pa.schema(keys)), partition_base_dir=str(folder)
    )
    factory = pa_dataset.FileSystemDatasetFactory(pa_fs.LocalFileSystem(), files, form, options)
    with_dictionaries = [pa.schema(map(_as_dictionary, schema)) for schema in schemas]
    return factory.finish(pa.unify_schemas([*with_dictionaries, pa.schema(keys)], promote_options="permissive"))


def _as_dictionary(field: pa.Field) -> pa.Field:
    is_plain = _is_text(field.type) and not pa.types.is_dictionary(field.type)
    return field.with_type(pa.dictionary(pa.int32(), field.type)) if is_plain else field


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _decoded(table: pa.Table) -> pa.Table:
    """Return a table without dictionaries."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    table = pa.table(columns, table.column_names)
    table.validate(full=True)  # texts of a Parquet file may be no UTF-8
    return table


def _decoded_size(table: pa.Table) -> int:
    """Compute the number of bytes of a table without dictionaries, whose texts count as often as they are used."""
    return sum(
        (pc.sum(pc.binary_length(part.dictionary).cast(pa.int64()).take(part.indices)).as_py() or 0)
        if pa.types.is_dictionary(part.type)
        else part.nbytes
        for column in table.columns
        for part in column.chunks
    )


def _check_memory(needed: int, size: int) -> None:
    if needed > max(_MIN_MEMORY, _MEMORY_PER_BYTE * size):
        raise MemoryError(f"it would take {needed:,} bytes of memory, far more than a table of this size should")


def _is_filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.fill_null(pc.not_equal(texts, ""), False)


def _read_geojson(file: Path) -> pa.Table:
    content = read_json(file)
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list) or not features:
        raise ValueError(f"{file} has no features.")
    rows = []
    for number, feature in enumerate(features, 1):
        try:
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            if geometry is None:  # no position, like a CSV row with blank degrees
                rows.append({**properties, "longitude": None, "latitude": None})
                continue
            kind = geometry["type"]
            longitude, latitude = geometry["coordinates"][:2]
            rows.append({**properties, "longitude": float(longitude), "latitude": float(latitude)})
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"{file}: feature {number} must be a Point with a longitude and a latitude.") from None
        if kind != "Point":
            raise ValueError(f"{file}: feature {number} must be a Point, got {printable(str(kind))}.")
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        reason = "a text is not UTF-8" if isinstance(error, UnicodeEncodeError) else first_line(error)
        raise ValueError(f"{file}: a property has values of several kinds, or too large ones: {reason}.") from None
