"""The catalogue: a columnar table of images, in memory or mapped from an Arrow file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.files import replacing
from progeo.places.filename import parse_columns

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_PATHS_AT_ONCE = 2**20
_COLUMNS = ("east", "north", "zone", "heading")


@dataclass(frozen=True)
class Catalogue:
    """N images below one folder, in the order of their paths."""

    folder: Path
    table: pa.Table
    """Columns path (relative to `folder`), east, north (metres), zone (0: absent), heading (degrees, NaN: absent)."""

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def east(self) -> np.ndarray:
        """UTM easting in metres, float64 (N,)."""
        return self.table["east"].to_numpy()

    @property
    def north(self) -> np.ndarray:
        """UTM northing in metres, float64 (N,)."""
        return self.table["north"].to_numpy()

    @property
    def heading(self) -> np.ndarray:
        """Degrees clockwise from north, float64 (N,), NaN where absent."""
        return self.table["heading"].to_numpy()

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the list of paths."""
        digest = hashlib.sha256()
        paths = self.table["path"]
        for start in range(0, len(self), _PATHS_AT_ONCE):
            part = paths.slice(start, _PATHS_AT_ONCE).combine_chunks()
            joined = pc.binary_join(pa.ListArray.from_arrays([0, len(part)], part), "\n")
            digest.update(joined[0].as_py().encode() + b"\n")
        return digest.hexdigest()[:16]

    @property
    def positions_m(self) -> np.ndarray:
        """UTM east and north in metres, (N, 2)."""
        return np.stack([self.east, self.north], axis=1)

    def path(self, row: int) -> Path:
        """The file of image `row`."""
        return self.folder / self.table["path"][row].as_py()

    def take(self, rows: np.ndarray) -> "Catalogue":
        """The catalogue of these `rows` alone, in the order given."""
        return Catalogue(self.folder, self.table.take(rows).combine_chunks())

    def save(self, path: Path) -> None:
        """Write the table as an Arrow file that `open_catalogue` maps into memory."""
        with replacing(path) as temporary, pa.ipc.new_file(str(temporary), self.table.schema) as writer:
            writer.write_table(self.table)


def read_catalogue(folder: Path) -> Catalogue:
    """Find the images below `folder` and parse their names.

    The paths come from the list `<folder>_images_paths.txt` when it lies beside the folder, else from the disk.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a name that does not follow the convention.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    listing = folder.with_name(f"{folder.name}_images_paths.txt")
    paths = _listed_paths(listing, folder) if listing.is_file() else _scanned_paths(folder)
    return build_catalogue(folder, paths)


def build_catalogue(folder: Path, paths: Sequence[str]) -> Catalogue:
    """Parse `paths`, relative to `folder`, into a catalogue sorted by path."""
    names = pa.array(sorted(paths), pa.string())
    return Catalogue(folder, pa.table({"path": names, **parse_columns(names, _COLUMNS)}))


def open_catalogue(path: Path, folder: Path) -> Catalogue:
    """Map a catalogue saved by `Catalogue.save`; `folder` is where its images lie now."""
    return Catalogue(folder, pa.ipc.open_file(pa.memory_map(str(path))).read_all())


def _scanned_paths(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS and path.is_file())
    paths = [path.relative_to(folder).as_posix() for path in files]
    if not paths:
        raise FileNotFoundError(f"There is no image ({', '.join(_EXTENSIONS)}) in {folder} or in a folder below it.")
    return paths


def _listed_paths(listing: Path, folder: Path) -> list[str]:
    paths = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not paths:
        raise FileNotFoundError(f"The list {listing} names no image; fill it or remove it.")
    if not (folder / paths[0]).is_file():
        raise FileNotFoundError(f"The list {listing} names {paths[0]}, which does not lie in {folder}.")
    return paths
