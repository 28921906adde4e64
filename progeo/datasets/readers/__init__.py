"""Readers of other data sets: one file per source, one table of them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.baidu import read_baidu
from progeo.datasets.readers.dbstruct import read_dbstruct
from progeo.datasets.readers.gsv_cities import read_gsv_cities
from progeo.datasets.readers.msls import read_msls
from progeo.datasets.readers.photos import read_photos
from progeo.datasets.readers.tables import read_table
from progeo.places.catalogue import Catalogue, check_files
from progeo.remote_files import RemotePath


@dataclass(frozen=True)
class Imported:
    """Catalogues of a data set."""

    catalogues: Mapping[str, Catalogue]
    """The catalogues by name of their folder; an empty name is the output itself."""
    skipped: Mapping[Path, str] = field(default_factory=dict)
    """Images that are in no catalogue, and why."""


def _table(
    source: Path,
    *,
    images: Path | RemotePath | None = None,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
) -> Imported:
    return Imported({"": read_table(source, images or source.parent, columns=columns, path=path)})


def _photos(source: Path) -> Imported:
    catalogue, skipped = read_photos(source)
    return Imported({"": catalogue}, skipped)


def _dbstruct(source: Path, *, images: Path, query_images: Path | None = None) -> Imported:
    return Imported(read_dbstruct(source, images, query_images))


def _arrays(source: Path, *, images: Path, name: str | None = None) -> Imported:
    return _with_files(read_arrays(source, images, name))


def _msls(
    source: Path, *, cities: tuple[str, ...] = (), subtask: str = "all", positive_radius_m: float = 25.0
) -> Imported:
    task = None if subtask == "any" else subtask
    return _with_files(read_msls(source, cities, subtask=task, positive_radius_m=positive_radius_m or None))


def _gsv_cities(source: Path, *, cities: tuple[str, ...] = (), min_images: int = 4) -> Imported:
    return Imported({"": read_gsv_cities(source, cities, min_images=min_images)})


def _baidu(source: Path) -> Imported:
    return Imported(read_baidu(source))


def _with_files(sides: Mapping[str, Catalogue]) -> Imported:
    for catalogue in sides.values():
        check_files(catalogue)
    return Imported(sides)


READERS: Mapping[str, Callable[..., Imported]] = MappingProxyType(
    {
        "table": _table,
        "photos": _photos,
        "dbstruct": _dbstruct,
        "arrays": _arrays,
        "msls": _msls,
        "gsv-cities": _gsv_cities,
        "baidu": _baidu,
    }
)
"""Reader of each kind of source; its keyword arguments are the options that the kind takes."""
