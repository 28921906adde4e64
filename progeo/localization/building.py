"""Build a place index of images or classes, and add images to it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from accelerate import Accelerator

from progeo.disk import make_folder
from progeo.engine.log import LOGGER
from progeo.evaluation.cell_index import Cells, add_to_cells, build_cell_index, cells_of_catalogue, cells_of_database
from progeo.evaluation.classification import lie_in_classes
from progeo.evaluation.options import CELLS
from progeo.evaluation.search import add_to_index, build_index, load_index
from progeo.export.classifier import check_fits_encoder, load_classifier
from progeo.export.weights import load_encoder, provenance_of, recalls_of, save_encoder
from progeo.features.descriptors import descriptor_extractor, descriptor_metadata, extract_descriptors
from progeo.features.options import CacheOptions, ClassOptions, ImageOptions, WorkOptions
from progeo.features.store import ReorderedRows, Rows, ShardedRows
from progeo.localization.cells import load_cells
from progeo.localization.class_means import extract_class_means
from progeo.localization.index_folder import (
    CLASSIFIER_FOLDERS,
    IndexMetadata,
    finish_update,
    holds_place_index,
    new_files,
    read_metadata,
    remove_unused_data,
    save_generation,
)
from progeo.localization.options import IndexOptions
from progeo.localization.place_index import (
    PlaceIndex,
    has_position,
    index_images,
    open_place_index,
    rows_in_index,
)
from progeo.localization.verifying import stored_features
from progeo.locks import locked
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cell_order import cell_order
from progeo.places.geographic import check_zones, degrees_of
from progeo.verification.feature_file import FeatureFile

_DESCRIPTORS_DEPEND_ON = ("encoder", "image_size", "database_preprocessing", "orientation")
"""Fields of `IndexMetadata` that the descriptors depend on."""
_Extract = Callable[[Catalogue], ShardedRows]


@dataclass(frozen=True)
class _Rows:
    """The rows of a new index."""

    descriptors: Rows
    catalogue: Catalogue
    classes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `IndexMetadata` about classes."""
    labels: np.ndarray | None = None
    """Class of each image, int64 (N,), for an index of cells; None for any other."""


def build_place_index(
    out: Path,
    folder: Path | None,
    *,
    encoder_name: str,
    accelerator: Accelerator,
    options: IndexOptions,
    classes: ClassOptions,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
) -> None:
    """Extract the descriptors of a folder of images and write a place index of them or of classes.

    Args:
        out: folder of the index.
        folder: the images; None for the classes of the encoder's classifier.
        encoder_name: see `load_encoder`.
        classes: cells of class means.

    Raises:
        ValueError: `out` holds an index already, the encoder has no weights, or options contradict each other.
        FileNotFoundError: the encoder has no classifier.
    """
    _check_options(folder, options, classes)
    if images.fast_decode:
        raise ValueError("`fast_decode` is not for place indexes, whose photos are decoded in full: leave it out.")
    if holds_place_index(out):
        raise _already_exists(out)
    encoder = load_encoder(encoder_name)
    if not encoder.has_weights:
        raise ValueError(f"A place index needs an encoder that can be saved, {encoder_name} cannot.")
    classifier = None
    if options.of == "classes":
        classifier = load_classifier(encoder_name)
        check_fits_encoder(classifier, encoder, encoder_name)
    cells = load_cells(options.classifier or encoder_name, encoder) if options.faiss == CELLS else None
    extractor = descriptor_extractor(encoder, images, accelerator)
    extract = partial(extract_descriptors, extractor, accelerator=accelerator, work=work, cache=cache)
    if folder is not None and options.of == "means":
        classifier = extract_class_means(read_catalogue(folder), encoder_name, classes, extract)
    with TemporaryDirectory() as scratch:
        if classifier is not None:
            rows = _rows_of_classes(classifier, Path(scratch))
        else:
            assert folder is not None
            rows = _rows_of_images(_read_images(folder), extract, cells)
        if not accelerator.is_main_process:
            return
        finish_update(out)
        index = _built(rows, options.faiss, cells)
    metadata = IndexMetadata(
        kind=options.faiss,
        probes=options.probes,
        encoder=descriptor_metadata(encoder),
        image_size=extractor.image_size,
        database_preprocessing=images.database_preprocessing,
        query_preprocessing=options.query_preprocessing,
        orientation=images.orientation,
        images=len(rows.catalogue),
        of=options.of,
        classifier="" if cells is None else CLASSIFIER_FOLDERS[cells.encoder is not None],
        partition="" if cells is None else cells.classifier.fingerprint,
        **rows.classes,
        **new_files(features=options.verify),
    )
    make_folder(out)
    extracted = stored_features(rows.catalogue, out, images.orientation) if options.verify else nullcontext()
    with (
        extracted as features,
        locked(out, wait=True),
    ):  # or the encoder could be that of another command that builds an index there
        if holds_place_index(out):
            raise _already_exists(out)
        remove_unused_data(out)
        _save_encoders(out, encoder, encoder_name, cells, options.classifier, classifier)
        stored = None if features is None else features.stored()
        if not save_generation(out, None, metadata, index, rows.catalogue, features=stored):
            raise _already_exists(out)


def _save_encoders(
    out: Path,
    encoder: Encoder,
    name: str,
    cells: Cells | None,
    classifier_name: str | None,
    classes: Classifier | None,
) -> None:
    """Save the encoder of an index with its classes, or the classifier of its cells with the encoder of that."""
    folders = [out / folder for folder in CLASSIFIER_FOLDERS]
    own = classes if cells is None or cells.encoder is not None else cells.classifier
    provenance = {**provenance_of(name), "encoder": name}
    save_encoder(folders[0], encoder, provenance=provenance, recalls=recalls_of(name), classifier=own)
    if cells is not None and cells.encoder is not None:
        provenance = {"encoder": classifier_name}
        save_encoder(folders[1], cells.encoder, provenance=provenance, recalls={}, classifier=cells.classifier)


def _check_options(folder: Path | None, options: IndexOptions, classes: ClassOptions) -> None:
    if (folder is None) != (options.of == "classes"):
        raise ValueError(
            "`folder` is needed: an index of images or means is made of the images in it."
            if folder is None
            else "An index of classes is made of the classifier of `encoder`, without images: leave `folder` out, or "
            "take `of` images or means."
        )
    if options.faiss == CELLS and options.of != "images":
        raise ValueError(f"`faiss` cells finds images in the cells of classes: take `of` images, got {options.of}.")
    if options.verify and options.of != "images":
        raise ValueError(f"`verify` stores local features of images: take `of` images, got {options.of}.")
    if options.classifier is not None and options.faiss != CELLS:
        raise ValueError(f"`classifier` is for `faiss` cells, got {options.faiss}.")
    if options.of != "means" and (given := [name for name, value in vars(classes).items() if value is not None]):
        raise ValueError(f"`{given[0]}` is for `of` means: the {options.of} of an index have no other cells.")


def _built(rows: _Rows, kind: str, cells: Cells | None) -> faiss.Index:
    if cells is None or rows.labels is None:
        return build_index(rows.descriptors, kind)
    vectors = cells.classifier.weight if cells.encoder is None else None
    return build_cell_index(rows.descriptors, rows.labels, vectors, num_classes=len(cells.classifier))


def _rows_of_images(catalogue: Catalogue, extract: _Extract, cells: Cells | None) -> _Rows:
    indexed = index_images(catalogue)
    check_zones(indexed)
    labels = None if cells is None else _cells_of(indexed, cells)  # before the hours of extraction
    descriptors = extract(catalogue)
    indexed = indexed.without(descriptors.missing)
    order = _order(indexed)
    if labels is not None:
        labels = np.delete(labels, descriptors.missing)[order]
    return _Rows(ReorderedRows(descriptors, order), indexed.take(order), labels=labels)


def _order(images: Catalogue) -> np.ndarray:
    """Sort images, as `index_images` returns them, so that those near a position are a few ranges of rows."""
    return cell_order(*degrees_of(images))


def _cells_of(images: Catalogue, cells: Cells) -> np.ndarray:
    """Assign each image to a class, see `cells_of_database`; log a warning if none lies in the cell of one."""
    if not lie_in_classes(images, cells.classifier).any():
        LOGGER.warning(
            "no image of %s lies in a cell of the classifier, so all are in the lists of the classes at its border: "
            "take a classifier of the same places",
            images.folder,
        )
    return cells_of_database(images, cells)


def _rows_of_classes(classifier: Classifier, scratch: Path) -> _Rows:
    """Store the vectors of classes, with unit length, in a temporary folder."""
    lengths = np.maximum(np.linalg.norm(classifier.weight, axis=1, keepdims=True), 1e-12)
    count, width = classifier.weight.shape
    vectors = ShardedRows(scratch, num_rows=count, width=width, shard_size=count, dtype="float32")
    vectors.write_shard(0, classifier.weight / lengths)
    fields = {"cell_side_m": classifier.cell_side_m, "scale": classifier.cosine_scale}
    return _Rows(vectors, classifier.catalogue, fields)


def add_to_place_index(
    index_folder: Path, folder: Path, *, accelerator: Accelerator, work: WorkOptions, cache: CacheOptions
) -> None:
    """Extract the descriptors of a folder of images and add them to a place index; those it holds are skipped."""
    if accelerator.is_main_process:
        finish_update(index_folder)
    index = open_place_index(index_folder, accelerator)
    if index.metadata.holds_classes:
        raise ValueError(f"{index_folder} is of classes, and images cannot be added to it: build it anew with them.")
    catalogue = _read_images(folder)
    images = index_images(catalogue)
    check_zones(index.catalogue, images)
    known = rows_in_index(index, images)
    if len(known):
        LOGGER.info("%d of %d images are in the index already", len(known), len(catalogue))
    if len(known) == len(catalogue):
        return
    extractor = index.extractor(index.metadata.database_preprocessing)
    descriptors = extract_descriptors(extractor, catalogue.without(known), accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        add_images(index, images.without(known), descriptors)
        if index.metadata.calibration is not None:
            LOGGER.warning("confidence was calibrated without these images: run `progeo index calibrate` again")


def add_images(index: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> None:
    """Add images to the current state of a place index, with local features if it has those of its other images.

    Args:
        index: the index, whose encoder extracted the descriptors.
        images: N images as `index_images` returns them.
        descriptors: (N, D); images whose rows are excluded are skipped.

    Raises:
        ValueError: the index was rebuilt meanwhile, with another encoder or other preprocessing.
    """
    with ExitStack() as temporary:
        features = None
        while True:
            if index.features is not None and features is None:
                extracted = stored_features(images, index.folder, index.metadata.orientation)
                features = temporary.enter_context(extracted)
            if _added(index, images, descriptors, features):
                return
            LOGGER.info("another command changed %s meanwhile: adding to what it holds now", index.folder)
            before, index = index, open_place_index(index.folder, index.processor)
            if any(getattr(index.metadata, name) != getattr(before.metadata, name) for name in _DESCRIPTORS_DEPEND_ON):
                raise ValueError(f"{index.folder} was built anew meanwhile, and differently: run this command again.")


def _already_exists(out: Path) -> ValueError:
    return ValueError(f"{out} holds a place index already: add to it, or name another `out`.")


def _read_images(folder: Path) -> Catalogue:
    """Read the images of a folder for an index; warn if some have no position."""
    catalogue = read_catalogue(folder, positions="optional")
    if num_unknown := int((~has_position(catalogue)).sum()):
        LOGGER.warning(
            "%s of %s images of %s have no position: they are retrieved as matches without a position; "
            "`progeo dataset import table` takes positions from a table",
            f"{num_unknown:,}",
            f"{len(catalogue):,}",
            folder,
        )
    return catalogue


def _added(index: PlaceIndex, images: Catalogue, descriptors: ShardedRows, features: FeatureFile | None) -> bool:
    """Add images to the index as it was opened; returns False if another command has changed it.

    Args:
        features: local features of the images, if the index has those of its other images.
    """
    try:
        faiss_index = load_index(index.folder / index.metadata.faiss_file)
    except ValueError:
        if read_metadata(index.folder) == index.metadata:
            raise
        return False
    new = descriptors.without(rows_in_index(index, images))
    if not len(new):
        return True
    added = images.without(new.missing)
    order = _order(added)
    rows, added = ReorderedRows(new, order), added.take(order)
    if index.cells is None:
        add_to_index(faiss_index, rows)
    else:
        add_to_cells(faiss_index, rows, cells_of_catalogue(added, index.cells.classifier))
    table = pa.concat_tables([index.catalogue.table, added.table])
    stored = None
    if index.features is not None:
        assert features is not None
        rows_of_added = np.delete(np.arange(len(images)), new.missing)[order]
        stored = chain(index.features.stored(), features.stored(rows_of_added.tolist()))
    metadata = replace(index.metadata, images=len(table), **new_files(features=stored is not None))
    whole = Catalogue(index.folder, table)
    return save_generation(index.folder, index.metadata, metadata, faiss_index, whole, features=stored)
