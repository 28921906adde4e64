"""Listings of object storage: the paths of images in files that the storage or its programs write."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from progeo.files import is_file
from progeo.image_files import EXTENSIONS
from progeo.places.paths import lines_of
from progeo.printable import first_line
from progeo.remote_files import IS_ABSOLUTE, RemotePath, path_in

_LOGGER = logging.getLogger("progeo")
_ROWS_AT_ONCE = 2**16
_CSV_BYTES_AT_ONCE = 2**23
_IMAGE = rf"(?i)({'|'.join(map(re.escape, EXTENSIONS))})$"
_HIDDEN = r"(^|/)\."
_INVENTORY = ("bucket", "key", "version_id", "is_latest", "is_delete_marker")
"""First columns of an S3 Inventory, of which those of versions may be missing."""
_VERSIONS = ("is_latest", "is_delete_marker")


@dataclass(frozen=True)
class _Form:
    """A form of the lines of a text."""

    line: str
    """Regular expression of a line that names a file, with the group `name`."""
    names_keys: bool = False
    """Whether the names are keys of the bucket, not URLs or paths."""


_FORMS = (
    _Form(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +\d+ (?P<name>.+)$", names_keys=True),  # aws s3 ls --recursive
    _Form(r"^ *\d+ +\d{4}-\d\d-\d\dT[\d:.]+Z +(?P<name>[a-z0-9]+://.+)$"),  # gsutil ls -l
    _Form(r"^(?P<name>.*[^:/])$"),  # paths or URLs, as of gsutil ls -r with its headings
)
"""Forms that the first line of a text decides between."""


def listed_paths(listings: Sequence[Path], root: Path | RemotePath) -> Iterator[pa.Array]:
    """Yield the paths of the images in listings relative to a folder, in their order, in batches, large_string.

    Args:
        listings: texts of paths or URLs, one a line, or as `aws s3 ls --recursive` and `gsutil ls` print them; .csv,
            .csv.gz and .parquet files of an S3 Inventory.
        root: the folder that the images lie in. What lies elsewhere is skipped, as are hidden images, and keys that
            would be read as the path or URL of something else.

    Raises:
        FileNotFoundError: there is no such listing, it names no image in the folder, or the first one does not exist.
        ValueError: a listing is corrupt, or of another bucket.
    """
    num_images = num_others = 0
    skipped = f"{_HIDDEN}|{IS_ABSOLUTE}|::" if isinstance(root, RemotePath) else _HIDDEN
    for listing in listings:
        if not listing.is_file():
            raise FileNotFoundError(f"There is no listing {listing}.")
        for names in _names(listing, root):
            is_image = pc.and_not(pc.match_substring_regex(names, _IMAGE), pc.match_substring_regex(names, skipped))
            images = names.filter(is_image)
            num_others += len(names) - len(images)
            if len(images) and not num_images and not is_file(path_in(root, images[0].as_py())):
                raise FileNotFoundError(f"{listing} names {images[0]}, which does not lie in {root}.")
            num_images += len(images)
            if len(images):
                yield images
    if not num_images:
        named = ", ".join(map(str, listings))
        raise FileNotFoundError(f"{named} names no image ({', '.join(EXTENSIONS)}) in {root}.")
    if num_others:
        _LOGGER.info(
            "%s other files of the listings are skipped: hidden, not of a format read, or called like a path or URL",
            f"{num_others:,}",
        )


def _names(listing: Path, root: Path | RemotePath) -> Iterator[pa.Array]:
    """Yield the names in one listing relative to the folder, of all files that lie in it."""
    endings = "".join(listing.suffixes[-2:]).lower()
    try:
        if endings.endswith(".parquet"):
            yield from _of_inventory(_parquet_batches(listing), listing, root)
        elif endings.endswith((".csv", ".csv.gz")):
            decoded = (_decoded(batch) for batch in _csv_batches(listing))
            yield from _of_inventory(decoded, listing, root)
        else:
            yield from _of_lines(lines_of(listing), root)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The listing {listing} cannot be read: {first_line(error)}.") from None


def _of_lines(batches: Iterable[pa.Array], root: Path | RemotePath) -> Iterator[pa.Array]:
    form = None
    for lines in batches:
        form = form or next(each for each in _FORMS if re.search(each.line, lines[0].as_py()) or each is _FORMS[-1])
        names = pc.struct_field(pc.extract_regex(lines, form.line), "name").drop_null()
        if form.names_keys:
            yield _below(names, [_key_prefix(root)], may_be_relative=False)
        else:
            yield _below(_unquoted(names, root), _prefixes(root), may_be_relative=True)


def _unquoted(names: pa.Array, root: Path | RemotePath) -> pa.Array:
    """Return the names of the files of a web server, which are quoted in URLs, for those that lie in a folder of it."""
    if not isinstance(root, RemotePath) or root.around[1] is str:
        return names
    before = root.around[0]
    texts = (root.relative(name) if name.startswith(before) else name for name in names.to_pylist())
    return pa.array(texts, pa.large_string())


def _of_inventory(batches: Iterable[pa.RecordBatch], listing: Path, root: Path | RemotePath) -> Iterator[pa.Array]:
    bucket = root.parts[1].partition("/")[0] if isinstance(root, RemotePath) else None
    for batch in batches:
        if bucket is not None and pc.any(pc.not_equal(batch["bucket"], bucket)).as_py():
            others = batch["bucket"].filter(pc.not_equal(batch["bucket"], bucket))
            raise ValueError(
                f"{listing} is no S3 Inventory of the bucket {bucket}: its first column holds {others[0].as_py()!r}. A "
                f"table with positions is read by `progeo dataset import table`."
            )
        keys = batch["key"]
        if "is_latest" in batch.schema.names:  # it lists all versions of the files
            keys = keys.filter(pc.and_not(_is_true(batch["is_latest"]), _is_true(batch["is_delete_marker"])))
        yield _below(keys, [_key_prefix(root)], may_be_relative=False)


def _csv_batches(listing: Path) -> Iterator[pa.RecordBatch]:
    types = {f"f{number}": pa.large_string() for number in range(len(_INVENTORY))}
    options = pa_csv.ReadOptions(autogenerate_column_names=True, block_size=_CSV_BYTES_AT_ONCE)
    for batch in pa_csv.open_csv(listing, options, convert_options=pa_csv.ConvertOptions(column_types=types)):
        columns = batch.columns[: len(_INVENTORY)]
        if len(columns) < 2:
            raise ValueError(f"{listing} is no S3 Inventory, whose first columns are bucket and key.")
        has_versions = len(columns) == len(_INVENTORY) and columns[3][0].as_py() in ("true", "false")
        count = len(_INVENTORY) if has_versions else 2
        yield pa.RecordBatch.from_arrays(columns[:count], list(_INVENTORY[:count]))


def _parquet_batches(listing: Path) -> Iterator[pa.RecordBatch]:
    with pa_parquet.ParquetFile(listing) as opened:
        held = {*opened.schema_arrow.names}
        names = [name for name in (_INVENTORY if held.issuperset(_VERSIONS) else _INVENTORY[:2]) if name in held]
        if not {"bucket", "key"} <= {*names}:
            raise ValueError(f"{listing} is no S3 Inventory, which has columns bucket and key.")
        for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=names):
            texts = [batch[name].cast(pa.large_string()) for name in names]
            yield pa.RecordBatch.from_arrays(texts, names)


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode the keys of a CSV, which are those of a URL: @ is %40, and a space is +."""
    keys = batch["key"]
    for code, letter in (("%40", "@"), ("%2F", "/")):
        keys = pc.replace_substring(keys, code, letter)
    if pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        keys = pa.array([unquote_plus(key) for key in keys.to_pylist()], keys.type)
    return batch.set_column(1, "key", keys)


def _is_true(texts: pa.Array) -> pa.Array:
    return pc.equal(pc.utf8_lower(texts), "true")


def _prefixes(root: Path | RemotePath) -> list[str]:
    """Return what the URLs or paths of the files of a folder begin with; those of a local one may also be absolute."""
    if isinstance(root, RemotePath):
        return [root.around[0]]
    return [f"{each.as_posix().rstrip('/')}/" for each in dict.fromkeys([root, root.absolute()])]


def _key_prefix(root: Path | RemotePath) -> str:
    """Return what the keys of the files of a folder begin with, "" for a local one that a bucket is mounted on."""
    key = root.parts[1].partition("/")[2].strip("/") if isinstance(root, RemotePath) else ""
    return f"{key}/" if key else ""


def _below(names: pa.Array, prefixes: Sequence[str], *, may_be_relative: bool) -> pa.Array:
    """Return the names relative to what begins with one of the prefixes, without those that lie elsewhere."""
    relative = names = names.cast(pa.large_string())
    inside = pa.repeat(False, len(names))
    for prefix in prefixes:
        begins = pc.starts_with(names, prefix)
        relative = pc.if_else(begins, pc.utf8_slice_codeunits(names, len(prefix)), relative)
        inside = pc.or_(inside, begins)
    if may_be_relative:
        inside = pc.or_(inside, pc.invert(pc.match_substring_regex(names, "^(/|[a-z0-9+.-]+://)")))
    return pc.replace_substring_regex(relative.filter(inside), r"^(\./+)+", "")
