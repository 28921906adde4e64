"""Commands for data sets before training: index, import and count classes and groups."""

import os
from pathlib import Path

import numpy as np

from progeo.config.datasets import (
    DatasetArraysSettings,
    DatasetGroupsSettings,
    DatasetIndexSettings,
    DatasetMslsSettings,
    DatasetPhotosSettings,
    DatasetStructSettings,
    DatasetTableSettings,
)
from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.dbstruct import read_dbstruct
from progeo.datasets.readers.msls import read_msls
from progeo.datasets.readers.photos import read_photos
from progeo.datasets.readers.tables import read_table
from progeo.engine.log import LOGGER, start_log
from progeo.places.catalogue import Catalogue, check_files, index_catalogue, index_file, read_catalogue
from progeo.places.cells import Partition, build_partition
from progeo.places.extent import extent_of
from progeo.places.geographic import check_zones, link_images


def index_dataset(settings: DatasetIndexSettings) -> Path:
    """Write the catalogue of a folder of images and return its path.

    Raises:
        FileExistsError: `out` is another folder that is not empty; its own images would no longer be found.
        OSError: the catalogue cannot be written next to the folder, or at `out`.
    """
    start_log(None)
    out = _folder_of(settings.out or settings.folder)
    if out.is_dir() and out.resolve() != settings.folder.resolve() and any(out.iterdir()):
        raise FileExistsError(f"There is something in {out} already: name another --out.")
    file = index_file(out)
    nearest = next((folder for folder in file.absolute().parents if folder.is_dir()), Path("/"))
    if not os.access(nearest, os.W_OK):  # before millions of names are read
        raise OSError(
            f"{file} could not be written: {nearest} may not be written to. Write it elsewhere with --out OUT: "
            f"OUT then stands for {settings.folder}."
        )
    index_catalogue(settings.folder, out, check=check_zones)
    LOGGER.info("%s: %s images of %s", file, f"{len(read_catalogue(out)):,}", settings.folder)
    return file


def read_image_table(settings: DatasetTableSettings) -> Path:
    """Write the catalogue of a table of images and return its path."""
    start_log(None)
    images = settings.images or settings.table.parent
    catalogue = read_table(settings.table, images, columns=settings.columns, path=settings.path)
    return _write(catalogue, settings.out, settings.link)


def read_own_photos(settings: DatasetPhotosSettings) -> Path:
    """Write the catalogue of photos with EXIF GPS positions and return its path."""
    start_log(None)
    photos = read_photos(settings.folder)
    for path in photos.without_place:
        LOGGER.warning("skipped, it has no position: %s", settings.folder / path)
    for path in photos.far_away:
        LOGGER.warning("skipped, it is too far from all others: %s", settings.folder / path)
    return _write(photos.catalogue, settings.out, settings.link)


def read_struct(settings: DatasetStructSettings) -> Path:
    """Write the catalogues of a dbStruct and return their folder."""
    start_log(None)
    for side, catalogue in read_dbstruct(settings.file, settings.images, settings.query_images).items():
        _write(catalogue, settings.out / side, settings.link)
    return settings.out


def read_truth(settings: DatasetArraysSettings) -> Path:
    """Write the catalogues of another program's ground truth and return their folder."""
    start_log(None)
    sides = read_arrays(settings.folder, settings.images, settings.name)
    for side, catalogue in sides.items():
        check_files(catalogue)
        _write(catalogue, settings.out / side, link=False)
    if sides["queries"].positives is not None:
        LOGGER.info("the correct database images of each query are given: --positive_radius_m has no effect")
    return settings.out


def read_street_sequences(settings: DatasetMslsSettings) -> Path:
    """Write the catalogues of cities of MSLS and return their folder."""
    start_log(None)
    sides = read_msls(
        settings.folder, settings.cities, subtask=settings.subtask, positive_radius_m=settings.positive_radius_m
    )
    for side, catalogue in sides.items():
        check_files(catalogue)
        _write(catalogue, settings.out / side, link=False)
    return settings.out


def plan_groups(settings: DatasetGroupsSettings) -> Partition:
    """Log the number of classes and images of each group, before any training; returns all groups."""
    start_log(None)
    catalogue = read_catalogue(settings.folder)
    partition = build_partition(catalogue, **{**vars(settings.cells), "num_groups": None})
    sizes = [np.diff(group.offsets) for group in partition.groups]
    used = sizes[: settings.cells.num_groups]
    rows = [("group", "classes", "images", "images of a class: least", "median", "most")]
    for number, size in enumerate(sizes, 1):
        counts = (number, len(size), size.sum(), size.min(), np.median(size), size.max())
        rows.append(tuple(f"{count:,.15g}" for count in counts))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        LOGGER.info("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    LOGGER.info(
        "%s images; %s of them in the %d groups of classes with at least %d, %s in the first %d",
        f"{len(catalogue):,}",
        f"{sum(size.sum() for size in sizes):,}",
        len(sizes),
        settings.cells.min_images_per_class,
        f"{sum(size.sum() for size in used):,}",
        len(used),
    )
    return partition


def _folder_of(out: Path) -> Path:
    """Return the folder that a catalogue stands for; `out` may also name the .arrow file itself."""
    return out.with_suffix("") if out.suffix == ".arrow" else out


def _write(catalogue: Catalogue, out: Path, link: bool) -> Path:
    """Write the catalogue that stands for the folder `out`, and with `link` also that folder of symbolic links."""
    out = _folder_of(out)
    file = index_file(out)
    if link:
        link_images(catalogue, out)
    catalogue.save(file, {"root": str(catalogue.folder.resolve())})
    zones = sorted(set(catalogue.zone.tolist()) - {0})
    LOGGER.info(
        "%s: %s images of %s%s",
        file,
        f"{len(catalogue):,}",
        catalogue.folder,
        f", in UTM zone {', '.join(map(str, zones))}" if zones else "",
    )
    if (extent := extent_of(catalogue)) is not None:
        LOGGER.info("%s %s", extent.text, extent.map_link)
        for row, reason in list(extent.elsewhere.items())[:1]:
            LOGGER.warning(
                "%d of %s images are misplaced, the first is %s: %s",
                len(extent.elsewhere),
                f"{len(catalogue):,}",
                catalogue.name(row),
                reason,
            )
    return file
