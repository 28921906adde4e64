"""Plan a training on a data set: scan its file names, count its classes and groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from progeo.config.datasets import PlanSettings
from progeo.printable import counted, plain_table
from progeo.terminal import rich_table

if TYPE_CHECKING:
    from rich.console import Group

    from progeo.remote_files import RemotePath


def scan_dataset(folders: tuple[str, ...], *, listing: tuple[Path, ...] = (), out: Path | None = None) -> Path:
    """Write the catalogue of one or several folders of images and return its path.

    Args:
        folders: Folder of images, or a URL that fsspec opens, such as s3://bucket/city or tar://::s3://bucket/city.tar.
            Its catalogue is written next to it, as <folder>.arrow. Several folders become one catalogue, with the
            columns of those that have one already.
        listing: Files that list the images of the folder, read instead of searching it. Paths or URLs, one a line, as
            aws s3 ls --recursive and gsutil ls print them; or the .csv.gz or .parquet files of an S3 Inventory.
        out: Other location for the catalogue, for a URL, several folders, or a folder on a read-only disk. The
            catalogue is written as <out>.arrow, and every command then accepts <out> as an image folder. null writes
            <folder>.arrow.

    Raises:
        FileExistsError: `out` is another folder that is not empty; its own images would no longer be found.
        OSError: the catalogue cannot be written next to the folder, or at `out`.
        ValueError: several folders or a URL are given without `out`, or several with a `listing`.
    """
    from progeo.datasets.together import index_together
    from progeo.engine.log import LOGGER
    from progeo.places.catalogue import read_catalogue
    from progeo.places.geographic import check_zones
    from progeo.places.scanning import index_catalogue
    from progeo.remote_files import RemotePath, path_of

    if not folders:
        raise ValueError("Name the `folders` to scan, such as sf_xl/train.")
    if len(folders) > 1 and listing:
        raise ValueError(f"A `listing` is of one folder, got {len(folders)} of them: scan each, then all together.")
    several = [path_of(str(folder)) for folder in folders]
    first, *others = several
    if out is None and (others or isinstance(first, RemotePath)):
        raise ValueError("Name `out`, the path of the catalogue of several folders or of a URL, such as city.")
    out = _checked_out(out or Path(folders[0]), first if not others else None)
    if others:
        file = index_together(several, out, check=check_zones)
    else:
        file = index_catalogue(first, out, listings=listing, check=check_zones)
    LOGGER.info("%s: %s images of %s", file, f"{len(read_catalogue(out)):,}", ", ".join(map(str, folders)))
    return file


def _checked_out(out: Path, folder: "Path | RemotePath | None") -> Path:
    """Check before millions of names are read that a catalogue can be written that stands for the folder `out`."""
    import os

    from progeo.datasets.output import folder_of
    from progeo.places.catalogue import index_file

    out = folder_of(out)
    if out.is_dir() and (folder is None or out.resolve() != folder.resolve()) and any(out.iterdir()):
        raise FileExistsError(f"There is something in {out} already: name another `out`.")
    file = index_file(out)
    nearest = next((parent for parent in file.absolute().parents if parent.is_dir()), Path("/"))
    if not os.access(nearest, os.W_OK):
        raise OSError(
            f"{file} could not be written: {nearest} may not be written to. Write it elsewhere with --out OUT: "
            f"OUT then stands for {folder}."
        )
    return out


@dataclass(frozen=True)
class Plan:
    """Classes and images of every group."""

    rows: tuple[dict[str, float], ...]
    """For each group: number of classes and images, and the minimum, median and maximum images of a class."""
    images: int
    """Number of images of the catalogue."""
    num_groups: int
    """Number of groups that training uses."""
    min_images_per_class: int

    def __str__(self) -> str:
        return "\n".join([*plain_table(self._table, num_texts=0), self._totals])

    def __rich__(self) -> "Group":
        from rich.console import Group

        return Group(rich_table(self._table, num_texts=0), self._totals)

    @property
    def _table(self) -> list[tuple[str, ...]]:
        head = ("group", "classes", "images", "images of a class: min", "median", "max")
        return [head, *(tuple(f"{value:,.15g}" for value in row.values()) for row in self.rows)]

    @property
    def _totals(self) -> str:
        counts = [int(row["images"]) for row in self.rows]
        return (
            f"{self.images:,} images; {sum(counts):,} of them in the {counted(len(counts), 'group')} of classes with "
            f"at least {self.min_images_per_class}, {sum(counts[: self.num_groups]):,} in the first "
            f"{min(self.num_groups, len(counts))}"
        )


def plan_groups(settings: PlanSettings) -> Plan:
    """Count the classes and images of each group, before any training."""
    import numpy as np

    from progeo.places.catalogue import read_catalogue
    from progeo.places.cells import build_partition

    catalogue = read_catalogue(settings.data.train_folder)
    partition = build_partition(catalogue, **{**vars(settings.cells), "num_groups": None})
    rows = []
    for number, group in enumerate(partition.groups, 1):
        sizes = np.diff(group.offsets)
        counts = {"classes": len(sizes), "images": int(sizes.sum()), "min": int(sizes.min())}
        rows.append({"group": number, **counts, "median": float(np.median(sizes)), "max": int(sizes.max())})
    num_groups = settings.cells.num_groups or len(rows)
    return Plan(tuple(rows), len(catalogue), num_groups, settings.cells.min_images_per_class)
