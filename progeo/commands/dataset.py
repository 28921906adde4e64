"""Plan a training on a data set: scan its file names, count its classes and groups."""

from dataclasses import dataclass
from pathlib import Path

from progeo.config.datasets import PlanSettings


def scan_dataset(folder: Path, *, out: Path | None = None) -> Path:
    """Write the catalogue of a folder of images and return its path.

    Args:
        folder: Folder of images. Its catalogue is written next to it, as <folder>.arrow.
        out: Other location for the catalogue, for a folder on a read-only disk. The catalogue is written as
            <out>.arrow, and every command then accepts <out> as an image folder. null writes <folder>.arrow.

    Raises:
        FileExistsError: `out` is another folder that is not empty; its own images would no longer be found.
        OSError: the catalogue cannot be written next to the folder, or at `out`.
    """
    import os

    from progeo.datasets.output import folder_of
    from progeo.engine.log import LOGGER
    from progeo.places.catalogue import index_catalogue, index_file, read_catalogue
    from progeo.places.geographic import check_zones

    out = folder_of(out or folder)
    if out.is_dir() and out.resolve() != folder.resolve() and any(out.iterdir()):
        raise FileExistsError(f"There is something in {out} already: name another `out`.")
    file = index_file(out)
    nearest = next((parent for parent in file.absolute().parents if parent.is_dir()), Path("/"))
    if not os.access(nearest, os.W_OK):  # before millions of names are read
        raise OSError(
            f"{file} could not be written: {nearest} may not be written to. Write it elsewhere with --out OUT: "
            f"OUT then stands for {folder}."
        )
    index_catalogue(folder, out, check=check_zones)
    LOGGER.info("%s: %s images of %s", file, f"{len(read_catalogue(out)):,}", folder)
    return file


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
        head = ("group", "classes", "images", "images of a class: min", "median", "max")
        table = [head, *(tuple(f"{value:,.15g}" for value in row.values()) for row in self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in table]
        counts = [int(row["images"]) for row in self.rows]
        return "\n".join(
            [
                *lines,
                f"{self.images:,} images; {sum(counts):,} of them in the {len(counts)} groups of classes with at least "
                f"{self.min_images_per_class}, {sum(counts[: self.num_groups]):,} in the first "
                f"{min(self.num_groups, len(counts))}",
            ]
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
