"""Build a place index of images or classes."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from progeo.disk import make_folder
from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.evaluation.cell_index import Cells, cells_of_database, empty_cell_index
from progeo.evaluation.classification import lie_in_classes
from progeo.evaluation.kinds import IndexKind, default_kind, default_refine, train_kind
from progeo.evaluation.options import CELLS
from progeo.evaluation.search import save_index
from progeo.export.classifier import check_fits_encoder, load_classifier
from progeo.export.weights import load_encoder, provenance_of, recalls_of, save_encoder
from progeo.features.descriptors import descriptor_extractor, descriptor_metadata, extract_descriptors
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import CacheOptions, ClassOptions, ImageOptions, WorkOptions
from progeo.features.store import ReorderedRows, Rows, ShardedRows
from progeo.files import check_can_be_written
from progeo.localization.cells import load_cells
from progeo.localization.class_means import extract_class_means
from progeo.localization.engines.connecting import EngineMetadata, check_free, engine_metadata
from progeo.localization.engines.options import EngineOptions
from progeo.localization.engines.writer import engine_writer, fingerprint_of
from progeo.localization.index_folder import (
    CLASSIFIER_FOLDERS,
    commit,
    finish_update,
    holds_place_index,
    new_file,
    new_parts,
)
from progeo.localization.index_metadata import EXACT, IndexMetadata, PartMetadata
from progeo.localization.options import IndexOptions
from progeo.localization.part_files import NewRows, PartFormat, write_parts
from progeo.localization.place_index import absolute_images, has_position, located_images
from progeo.localization.stored_files import stored_file
from progeo.locks import locked
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cell_order import cell_order
from progeo.places.geographic import check_zones

_PROBES = 16
"""Number of inverted lists that a search visits, unless it is chosen."""
_Extract = Callable[[Catalogue], ShardedRows]


@dataclass(frozen=True)
class _Rows:
    """The rows of a new index."""

    new: NewRows
    classes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `IndexMetadata` about classes."""


def build_place_index(
    out: Path,
    folder: Path | None,
    *,
    encoder_name: str,
    accelerator: Accelerator,
    options: IndexOptions,
    engine_options: EngineOptions = EngineOptions(),
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
        engine_options: where descriptors are stored and searched.
        classes: cells of class means.

    Raises:
        ValueError: `out` holds an index already, the encoder has no weights, or options contradict each other.
        FileNotFoundError: the encoder has no classifier.
        ConnectionError: the engine cannot be reached.
    """
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
    encoder, classifier, cells = prepared.encoder, prepared.classifier, prepared.cells
    engine, extractor = prepared.engine, prepared.extractor
    extract = partial(extract_descriptors, extractor, accelerator=accelerator, work=work, cache=cache)
    if folder is not None and options.of == "means":
        classifier = extract_class_means(read_catalogue(folder), encoder_name, classes, extract)
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # Windows removes no file that is mapped
        if classifier is not None:
            rows = _rows_of_classes(classifier, Path(scratch))
        else:
            assert folder is not None
            rows = _rows_of_images(read_images(folder), extract, cells)
        if not accelerator.is_main_process:
            _written_by_all(None, rows.new, accelerator)
            return
        kind = IndexKind(engine.name, _PROBES, 0) if engine else kind_of(options, rows.new.descriptors)
        metadata = IndexMetadata(
            kind=kind.faiss,
            engine=engine,
            probes=kind.probes,
            refine=kind.refine,
            kind_is_default=options.faiss is None and engine is None,
            part_rows=options.part_rows,
            encoder=descriptor_metadata(encoder),
            image_size=extractor.image_size,
            database_preprocessing=images.database_preprocessing,
            query_preprocessing=options.query_preprocessing,
            orientation=images.orientation,
            of=options.of,
            classifier="" if cells is None else CLASSIFIER_FOLDERS[cells.encoder is not None],
            partition="" if cells is None else cells.classifier.fingerprint,
            stores_features=options.verify,
            parts=(),
            **rows.classes,
        )
        make_folder(out)
        with locked(out, wait=True):  # or the encoder could be that of another command that builds an index there
            if holds_place_index(out):
                raise _already_exists(out)
            finish_update(out)
            _save_encoders(out, encoder, encoder_name, cells, options.classifier, classifier)
            if not write_index(out, metadata, rows.new, cells, accelerator=accelerator):
                raise _already_exists(out)


@dataclass(frozen=True)
class Preparation:
    """What a place index is built with, loaded and checked before the hours of extraction."""

    encoder: Encoder
    classifier: Classifier | None
    """Whose classes are the rows of the index; None if its rows are images or means of them."""
    cells: Cells | None
    """The cells that are its lists; None if its lists are no cells."""
    engine: EngineMetadata | None
    extractor: FeatureExtractor


def prepare_index(
    out: Path,
    folder: Path | None,
    *,
    encoder_name: str,
    accelerator: Accelerator,
    options: IndexOptions,
    engine_options: EngineOptions,
    classes: ClassOptions,
    images: ImageOptions,
) -> Preparation:
    """Load and check what `build_place_index` needs, with its arguments and its errors, without writing anything."""
    _check_options(folder, options, engine_options, classes)
    if images.fast_decode:
        raise ValueError("`fast_decode` is not for place indexes, whose photos are decoded in full: leave it out.")
    if holds_place_index(out):
        raise _already_exists(out)
    check_can_be_written(out / "index.json")  # before hours of extraction
    encoder = load_encoder(encoder_name)
    if not encoder.has_weights:
        raise ValueError(
            f"A place index needs an encoder that can be saved, {encoder_name} cannot: give the folder of a run or "
            f"of an import, or for example open_clip:ViT-B-32:openai."
        )
    classifier = None
    if options.of == "classes":
        classifier = load_classifier(encoder_name)
        check_fits_encoder(classifier, encoder, encoder_name)
    cells = load_cells(options.classifier or encoder_name, encoder) if options.faiss == CELLS else None
    engine = engine_metadata(engine_options, out, fingerprint_of(descriptor_metadata(encoder)))
    if engine is not None:
        check_free(engine, out, width=encoder.descriptor_dim, num_processes=accelerator.num_processes)
    return Preparation(encoder, classifier, cells, engine, descriptor_extractor(encoder, images, accelerator))


def write_index(
    folder: Path,
    metadata: IndexMetadata,
    rows: NewRows,
    cells: Cells | None = None,
    *,
    before: IndexMetadata | None = None,
    accelerator: Accelerator | None = None,
) -> bool:
    """Train an index on rows, write them to parts in bounded memory, and commit it; see `save_parts`.

    Args:
        folder: folder of the index, which holds its encoder already.
        metadata: its metadata, to which the parts are added.
        cells: the cells that are its lists; None if its lists are no cells.
        before: metadata of the generation that it replaces; None for a new index.
        accelerator: the processes that write parts, as `_written_by_all`; None for this one alone.

    Returns:
        Whether it was committed: no other command came first.
    """
    with ExitStack() as stack:
        if metadata.engine is None and (index := _trained(rows, metadata.kind, cells)) is not None:
            save_index(index, trained := stack.enter_context(new_file(folder, "trained", ".faiss")))
            metadata = replace(
                metadata,
                refine=metadata.refine or default_refine(index),
                trained_file=trained.name,
                files={trained.name: stored_file(trained)},
            )
        metadata = replace(metadata, trained_on=len(rows))
        return save_parts(folder, metadata, rows, before=before, accelerator=accelerator)


def save_parts(
    folder: Path,
    metadata: IndexMetadata,
    rows: NewRows,
    *,
    before: IndexMetadata | None,
    accelerator: Accelerator | None = None,
) -> bool:
    """Write rows to parts that are filled copies of a trained index, and commit them in place of all others.

    Args:
        metadata: metadata of the index, which name the file of the trained one.
        before, accelerator: see `write_index`.
    """
    form = part_format(folder, metadata)
    cuts = form.cuts(len(rows))
    with new_parts(folder, len(cuts)) as folders:
        parts = list(zip(folders, cuts, strict=True))
        if accelerator is None:
            written = write_parts(parts, rows, form)
        else:
            written = _written_by_all((folder, metadata, parts), rows, accelerator)
        metadata = replace(metadata, parts=tuple(written))
        if committed := commit(folder, before, metadata):
            size = sum(part.size for part in written) / 1e6
            LOGGER.info("place index of %s in %s, %s MB and the encoder", metadata.rows, folder, f"{size:,.1f}")
    if committed and form.writer is not None:
        LOGGER.info("its descriptors are in %s", form.writer.place)
        form.writer.tidy(folder)
    return committed


def _written_by_all(
    task: tuple[Path, IndexMetadata, list[tuple[Path, tuple[int, int]]]] | None, rows: NewRows, accelerator: Accelerator
) -> list[PartMetadata]:
    """Write parts, each of the processes its share of them; all of them call this and get the metadata of all parts.

    Args:
        task: folder and metadata of the index, and the folder and the range of rows of each part; None where the
            process is not the main one.
    """
    folder, metadata, parts = of_main_process(task)
    form = part_format(folder, metadata)
    mine = parts[accelerator.process_index :: accelerator.num_processes]
    written = gather_object(write_parts(mine, rows, form, hidden=not accelerator.is_main_process))
    return sorted(written, key=lambda part: part.name)


def part_format(folder: Path, metadata: IndexMetadata) -> PartFormat:
    """Return what the parts of an index have in common."""
    trained = folder / metadata.trained_file if metadata.trained_file else None
    orientation = metadata.orientation if metadata.stores_features else None
    return PartFormat(metadata.encoder, trained, metadata.part_rows, orientation, engine_writer(folder, metadata))


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


def _check_options(folder: Path | None, options: IndexOptions, engine: EngineOptions, classes: ClassOptions) -> None:
    if (folder is None) != (options.of == "classes"):
        raise ValueError(
            "`folder` is needed: an index of images or means is made of the images in it."
            if folder is None
            else "An index of classes is made of the classifier of `encoder`, without images: leave `folder` out, or "
            "take `of` images or means."
        )
    if options.faiss == CELLS and options.of != "images":
        raise ValueError(f"`faiss` cells finds images in the cells of classes: take `of` images, got {options.of}.")
    if engine.engine is not None and options.faiss is not None:
        raise ValueError(f"`faiss` is for an index without an `engine`, got {options.faiss}: leave one of them out.")
    if options.verify and options.of != "images":
        raise ValueError(f"`verify` stores local features of images: take `of` images, got {options.of}.")
    if options.classifier is not None and options.faiss != CELLS:
        raise ValueError(f"`classifier` is for `faiss` cells, got {options.faiss or 'null'}.")
    if options.of != "means" and (given := [name for name, value in vars(classes).items() if value is not None]):
        raise ValueError(f"`{given[0]}` is for `of` means: the {options.of} of an index have no other cells.")


def kind_of(options: IndexOptions, rows: Rows) -> IndexKind:
    """Return the kind of index that was asked for, or else the one that fits the rows, and log it if it is lossy."""
    if options.faiss is not None:
        return IndexKind(options.faiss, options.probes or _PROBES, options.refine or 0)
    kind = default_kind(len(rows), rows.width)
    kind = replace(kind, probes=options.probes or kind.probes)
    if kind.refine:
        kind = replace(kind, refine=options.refine or kind.refine)
        log_compressed(kind, len(rows))
    return kind


def log_compressed(kind: IndexKind, num_rows: int) -> None:
    """Log how the rows of an index are compressed by default."""
    LOGGER.info(
        "%s rows are compressed as %s: a search visits %d lists and compares the best %d rows exactly; `faiss` Flat "
        "compares all",
        f"{num_rows:,}",
        kind.faiss,
        kind.probes,
        kind.refine,
    )


def _trained(rows: NewRows, kind: str, cells: Cells | None) -> faiss.Index | None:
    """Train an empty index for rows; None if they are compared exactly."""
    if cells is None or rows.labels is None:
        return None if kind == EXACT else train_kind(rows.descriptors, kind)
    vectors = cells.classifier.weight if cells.encoder is None else None
    return empty_cell_index(rows.descriptors, rows.labels, vectors, num_classes=len(cells.classifier))


def _rows_of_images(catalogue: Catalogue, extract: _Extract, cells: Cells | None) -> _Rows:
    images = located_images(catalogue)
    check_zones(images)
    labels = None if cells is None else cells_of_images(images, cells)  # before the hours of extraction
    descriptors = extract(catalogue)
    if labels is not None:
        labels = np.delete(labels, descriptors.missing)
    return _Rows(rows_in_cell_order(images.without(descriptors.missing), descriptors, labels))


def rows_in_cell_order(images: Catalogue, descriptors: Rows, labels: np.ndarray | None = None) -> NewRows:
    """Sort images by cells, so that those near a position are a few ranges of rows of few parts.

    Args:
        images: N images, as `located_images` returns them.
        descriptors: (N, D).
        labels: class of each image, int64 (N,), for an index of cells.
    """
    order = cell_order(images.table["latitude"], images.table["longitude"])

    def images_of(first: int, last: int) -> Catalogue:
        return absolute_images(images.take(order[first:last]))

    return NewRows(ReorderedRows(descriptors, order), images_of, None if labels is None else labels[order])


def cells_of_images(images: Catalogue, cells: Cells) -> np.ndarray:
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
    images = classifier.catalogue
    return _Rows(NewRows(vectors, lambda first, last: images.take(np.arange(first, last))), fields)


def _already_exists(out: Path) -> ValueError:
    return ValueError(f"{out} holds a place index already: add to it, or name another `out`.")


def read_images(folder: Path) -> Catalogue:
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
