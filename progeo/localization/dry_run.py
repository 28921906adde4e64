"""What building a place index, or adding images to one, would take: checked and measured, without writing anything."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.engine.checkpoint import checkpoint_bytes
from progeo.engine.dry_run import DryRun, Phase, Space, free_space
from progeo.evaluation.cell_index import Cells
from progeo.evaluation.kinds import num_lists_of, untrained_kind
from progeo.evaluation.options import CELLS
from progeo.features.cache import Cache
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import CacheOptions, ClassOptions, ImageOptions, WorkOptions
from progeo.features.store import Ones
from progeo.features.timing import extraction_phase
from progeo.image_files import Orientation
from progeo.localization.adding import open_for_adding
from progeo.localization.building import cells_of_images, kind_of, prepare_index, read_images
from progeo.localization.class_means import partition_for_means
from progeo.localization.engines.options import EngineOptions
from progeo.localization.index_metadata import EXACT
from progeo.localization.options import IndexOptions
from progeo.localization.part_files import indexed_row_bytes, max_indexed_rows
from progeo.localization.place_index import absolute_images, has_position, located_images
from progeo.localization.verifying import extracted_features
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones

_SAMPLE = 8
"""Number of images whose local features are measured."""
_CATALOGUE_SAMPLE = 1000
_PATH_BYTES = 16
"""Bytes of a row in the table of paths."""
_LIST_KIND = "IVF{},Flat"
"""The kind of an index of cells."""


@dataclass
class _Estimate:
    """The parts of a dry run as they are found.

    Args:
        extractor: extracts the descriptors of the images of the index.
        accelerator, work, cache: see `extract_descriptors`.
    """

    extractor: FeatureExtractor
    accelerator: Accelerator
    work: WorkOptions
    cache: CacheOptions
    found: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    spaces: list[Space] = field(default_factory=list)
    index_bytes: int = 0
    """Size of the files of the index."""

    def extract_descriptors(self, catalogue: Catalogue) -> None:
        """Estimate the extraction of descriptors that the cache does not hold."""
        folder, keep_as = self.cache.descriptor_cache, self.cache.keep_as
        phase = extraction_phase(
            self.extractor,
            catalogue,
            self.accelerator,
            cache=Cache(folder, keep_as, "descriptor_cache"),
            batch_size=self.work.batch_size,
            num_workers=self.work.num_workers,
        )
        self.phases.append(phase)
        num_bytes = phase.count * self.extractor.width * np.dtype(keep_as).itemsize
        self.spaces.append(free_space("descriptors", folder, num_bytes))

    def extract_local_features(self, images: Catalogue, orientation: Orientation) -> None:
        """Estimate the extraction of local features, and their size."""
        sample, start = images.take(np.arange(min(len(images), _SAMPLE))), time.monotonic()
        num_bytes = sum(len(each.values or b"") for each in extracted_features(sample, orientation))
        seconds = len(images) * (time.monotonic() - start) / len(sample) / self.accelerator.num_processes
        self.phases.append(Phase("local features", len(images), "images", seconds))
        self.index_bytes += num_bytes * len(images) // len(sample)

    def write_rows(self, images: Catalogue, count: int, *, kind: str | None, part_rows: int) -> None:
        """Add the size of rows in an index of a kind; None where an engine holds their descriptors.

        Args:
            images: images or classes of these rows, or of others.
            count: number of rows.
        """
        sample = absolute_images(images.take(np.arange(min(len(images), _CATALOGUE_SAMPLE))))
        self.index_bytes += count * (sample.table.nbytes // len(sample) + _PATH_BYTES)
        if kind is not None:
            self.index_bytes += _descriptor_bytes(
                kind, count, self.extractor.width, part_rows=part_rows, keep_as=self.cache.keep_as
            )

    def of(self, command: str, folder: Path) -> DryRun:
        """Return the dry run of a command that writes to the folder of an index."""
        return DryRun(
            command, self.found, self.phases, [*self.spaces, free_space("place index", folder, self.index_bytes)]
        )


def dry_run_of_building(
    out: Path,
    folder: Path | None,
    *,
    encoder_name: str,
    accelerator: Accelerator,
    options: IndexOptions,
    engine_options: EngineOptions,
    classes: ClassOptions,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
) -> DryRun:
    """Check what `build_place_index` needs, with its arguments and its errors, and estimate its time and space."""
    prepared = prepare_index(
        out,
        folder,
        encoder_name=encoder_name,
        accelerator=accelerator,
        options=options,
        engine_options=engine_options,
        classes=classes,
        images=images,
    )
    estimate, dim = _Estimate(prepared.extractor, accelerator, work, cache), prepared.encoder.descriptor_dim
    estimate.index_bytes = checkpoint_bytes(prepared.encoder.state_dict())
    height, width = prepared.extractor.image_size
    estimate.found.append(f"encoder     {encoder_name}: {dim} dimensions of images of {height} x {width} pixels")
    if folder is None:
        assert prepared.classifier is not None  # an index of classes has one
        rows, count = prepared.classifier.catalogue, len(prepared.classifier)
    elif options.of == "means":
        rows = read_catalogue(folder)
        (group,) = partition_for_means(rows, encoder_name, classes).groups
        count = group.num_classes
        estimate.found.append(f"images      {len(group.rows):,} of {len(rows):,} are in classes")
        estimate.extract_descriptors(rows)
    else:
        catalogue = read_images(folder)
        rows, count = _checked(located_images(catalogue), prepared.cells), len(catalogue)
        estimate.found.append(f"images      {count:,}, {has_position(rows).sum():,} of them with a position")
        estimate.extract_descriptors(catalogue)
        if options.verify:
            estimate.extract_local_features(rows, images.orientation)
    kind = options.faiss if prepared.engine else kind_of(options, Ones(count, dim)).faiss
    name = prepared.engine.name if prepared.engine else kind
    estimate.found.append(f"index       {count:,} {'images' if options.of == 'images' else 'classes'}, {name}")
    if prepared.cells is not None:
        kind = _LIST_KIND.format(len(prepared.cells.classifier))
    estimate.write_rows(rows, count, kind=kind, part_rows=options.part_rows)
    return estimate.of("index build", out)


def dry_run_of_adding(
    index_folder: Path, folder: Path, *, accelerator: Accelerator, work: WorkOptions, cache: CacheOptions
) -> DryRun:
    """Check what `add_to_place_index` needs, with its arguments and its errors, and estimate its time and space."""
    new = open_for_adding(index_folder, folder, accelerator)
    metadata, count = new.index.metadata, len(new.images)
    estimate = _Estimate(new.extractor, accelerator, work, cache)
    estimate.found += [
        f"index       {metadata.rows}, {metadata.kind}",
        f"images      {count:,} that the index does not hold yet",
    ]
    if count:
        estimate.extract_descriptors(new.catalogue)
        if metadata.stores_features:
            estimate.extract_local_features(new.images, metadata.orientation)
        kind = _LIST_KIND.format(new.index.store.num_lists) if metadata.kind == CELLS else metadata.kind
        held = None if metadata.engine else kind
        estimate.write_rows(new.images, count, kind=held, part_rows=metadata.part_rows)
    return estimate.of("index add", index_folder)


def _checked(images: Catalogue, cells: Cells | None) -> Catalogue:
    """Check that positions of images can be compared, with each other and with the cells of an index."""
    check_zones(images)
    if cells is not None:
        cells_of_images(images, cells)
    return images


def _descriptor_bytes(kind: str, num_rows: int, dim: int, *, part_rows: int, keep_as: str) -> int:
    """Return the bytes of descriptors in an index of a kind: float16 beside their codes, unless that is exact.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == EXACT:
        return num_rows * dim * np.dtype(keep_as).itemsize
    index = untrained_kind(kind, num_rows, dim)
    num_parts = -(-num_rows // max_indexed_rows(index, part_rows))
    centers = 4 * dim * num_lists_of(index)  # each part has those of its lists, and the trained index
    return num_rows * (indexed_row_bytes(index) + 2 * dim) + (num_parts + 1) * centers
