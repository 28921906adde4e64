"""Add images to a place index: a new part, whatever the size of the others."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.cell_index import cells_of_catalogue
from progeo.features.descriptors import extract_descriptors
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import CacheOptions, WorkOptions
from progeo.features.store import Rows, ShardedRows
from progeo.localization.building import part_format, read_images, rows_in_cell_order
from progeo.localization.engines.writer import engine_writer
from progeo.localization.index_folder import (
    commit,
    finish_update,
    new_file,
    new_parts,
    read_metadata,
    with_current,
)
from progeo.localization.index_metadata import IndexMetadata, PartMetadata, check_format
from progeo.localization.part_files import NewRows, known_rows, open_parts, write_parts
from progeo.localization.place_index import (
    PlaceIndex,
    absolute_images,
    has_position,
    located_images,
    open_place_index,
    rows_in_index,
)
from progeo.localization.removed_rows import open_removed, with_removed
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import check_zones

_MANY_PARTS = 32
"""Number of times the parts that its images need that an index may have."""
_DESCRIPTORS_DEPEND_ON = ("encoder", "image_size", "database_preprocessing", "orientation")
"""Fields of `IndexMetadata` that the descriptors depend on."""
_PARTS_DEPEND_ON = ("trained_file", "stores_features")
"""Fields of `IndexMetadata` that the files of a part depend on."""


def add_to_place_index(
    index_folder: Path, folder: Path, *, accelerator: Accelerator, work: WorkOptions, cache: CacheOptions
) -> None:
    """Extract the descriptors of a folder of images and add them to a place index; those it holds are skipped."""
    if accelerator.is_main_process:
        finish_update(index_folder)
    new = open_for_adding(index_folder, folder, accelerator)
    if not len(new.images):
        return
    descriptors = extract_descriptors(new.extractor, new.catalogue, accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        add_images(new.index, new.images, descriptors)
        if new.index.metadata.calibration is not None:
            LOGGER.warning("confidence was calibrated without these images: run `progeo index calibrate` again")


@dataclass(frozen=True, eq=False)
class NewImages:
    """Images to add to a place index, without those that it holds."""

    index: PlaceIndex
    catalogue: Catalogue
    images: Catalogue
    """The same images, as `located_images` returns them."""

    @property
    def extractor(self) -> FeatureExtractor:
        """Extracts their descriptors."""
        return self.index.extractor(self.index.metadata.database_preprocessing)


def open_for_adding(index_folder: Path, folder: Path, accelerator: Accelerator) -> NewImages:
    """Open a place index and find the images of a folder that it does not hold, without writing anything.

    Raises:
        ValueError: the index is of classes, or positions of the images and of those in it cannot be compared.
    """
    index = open_place_index(index_folder, accelerator)
    check_format(index.metadata, index_folder)
    if index.metadata.holds_classes:
        raise ValueError(f"{index_folder} is of classes, and images cannot be added to it: build it anew with them.")
    catalogue = read_images(folder)
    images = located_images(catalogue)
    _check_zones(index, images)
    known = rows_in_index(index, absolute_images(images))
    if len(known):
        LOGGER.info("%d of %d images are in the index already", len(known), len(catalogue))
    return NewImages(index, catalogue.without(known), images.without(known))


def add_images(index: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> None:
    """Add images to the current state of a place index, with local features if it has those of its other images.

    Args:
        index: the index, whose encoder extracted the descriptors.
        images: N images as `located_images` returns them.
        descriptors: (N, D); images whose rows are excluded are skipped.

    Raises:
        ValueError: the index was rebuilt meanwhile, with another encoder or other preprocessing.
    """
    while True:
        known = rows_in_index(index, absolute_images(images))
        new = descriptors.without(known)
        if not len(new):
            break
        try:
            if _added(index, images.without(new.missing), new):
                break
        except (OSError, ValueError):  # if another command replaced the files, it can succeed with those of now
            if read_metadata(index.folder) == index.metadata:
                raise
        LOGGER.info("another command changed %s meanwhile: adding to what it holds now", index.folder)
        before, index = index, open_place_index(index.folder, index.processor)
        if not _agree(index.metadata, before.metadata, _DESCRIPTORS_DEPEND_ON):
            raise ValueError(f"{index.folder} was built anew meanwhile, and differently: run this command again.")
    finish_update(index.folder)
    if (writer := engine_writer(index.folder, index.metadata)) is not None:
        writer.tidy(index.folder)
    else:
        with_current(index.folder, lambda metadata: _warn_of_many_parts(index.folder, metadata))


def _warn_of_many_parts(folder: Path, metadata: IndexMetadata) -> None:
    needed = len(part_format(folder, metadata).cuts(metadata.images))
    if len(metadata.parts) > _MANY_PARTS * needed:
        LOGGER.warning(
            "%s has %d parts, and its images need %d: run `progeo index compact` to search faster",
            *(folder, len(metadata.parts), needed),
        )


def _added(index: PlaceIndex, images: Catalogue, descriptors: Rows) -> bool:
    """Write parts of new images and commit them; returns False if that needs other parts than were written."""
    folder, opened = index.folder, index.metadata
    labels = None if index.cells is None else cells_of_catalogue(images, index.cells.classifier)
    rows = rows_in_cell_order(images, descriptors, labels)
    form = part_format(folder, opened)
    cuts = form.cuts(len(rows))
    with new_parts(folder, len(cuts)) as folders:
        written = write_parts(list(zip(folders, cuts, strict=True)), rows, form)
        while True:
            current = read_metadata(folder)
            if all(part in current.parts for part in written):  # committed, and another command committed on top of it
                return True
            if not _agree(current, opened, (*_DESCRIPTORS_DEPEND_ON, *_PARTS_DEPEND_ON)):
                return False
            if _committed(folder, opened, current, written, rows):
                size = sum(part.size for part in written) / 1e6
                LOGGER.info("%s images added to %s, %s MB", f"{len(rows):,}", folder, f"{size:,.1f}")
                return True


def _committed(
    folder: Path, opened: IndexMetadata, current: IndexMetadata, written: list[PartMetadata], rows: NewRows
) -> bool:
    """Commit parts after those of the current generation; images that another command added, too, are removed there."""
    since = [part for part in current.parts if part not in opened.parts]
    metadata = replace(current, parts=(*current.parts, *written))
    twice = np.empty(0, np.int64)
    if since:
        parts = open_parts(folder, current)
        paths = rows.images(0, len(rows)).table["path"]
        twice = np.flatnonzero(known_rows(parts, open_removed(folder, current), paths)) + current.num_rows
    if not len(twice):
        return commit(folder, current, metadata)
    if len(twice) == len(rows):
        return True
    with new_file(folder, "removed", ".npy") as path:
        removed = np.concatenate([open_removed(folder, current), twice])
        return commit(folder, current, with_removed(metadata, path, removed))


def _agree(one: IndexMetadata, other: IndexMetadata, fields: tuple[str, ...]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _check_zones(index: PlaceIndex, images: Catalogue) -> None:
    """Check new images with those of an index, see `check_zones`; where all have a zone, without reading the latter."""
    zones = {zone for part in index.metadata.parts for zone in part.zones}
    zones.update(np.unique(images.zone[has_position(images)]).tolist())
    check_zones(*([index.images] if 0 in zones and len(zones) > 2 else []), images)
