"""Build a place index, add images to it, and calibrate its confidence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.copies import find_copies
from progeo.evaluation.search import add_to_index, build_index, load_index
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.descriptors import descriptor_extractor, descriptor_metadata, extract_descriptors
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.localization.confidence import Calibration, calibrate
from progeo.localization.index_folder import (
    IndexMetadata,
    commit,
    holds_place_index,
    new_files,
    read_metadata,
    save_generation,
)
from progeo.localization.place_index import (
    ENCODER_FOLDER,
    PlaceIndex,
    has_position,
    index_images,
    open_place_index,
    rows_in_index,
)
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones, positions_m

_MIN_PHOTOS = 20
_DESCRIPTORS_DEPEND_ON = ("encoder", "image_size", "database_preprocessing", "orientation")
"""Fields of `IndexMetadata` that the descriptors depend on."""


def build_place_index(
    out: Path,
    folder: Path,
    *,
    encoder_name: str,
    accelerator: Accelerator,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
    query_preprocessing: Preprocessing = "hard_resize",
    faiss: str = "Flat",
    probes: int = 16,
) -> None:
    """Extract the descriptors of a folder of images and write a place index.

    Args:
        out: folder of the index.
        encoder_name: see `load_encoder`.
        query_preprocessing: preprocessing of photos to localize.
        faiss: faiss factory string.
        probes: number of inverted lists of an IVF index that a search visits.

    Raises:
        ValueError: `out` holds an index already, or the encoder has no weights.
    """
    if holds_place_index(out):
        raise _already_exists(out)
    encoder = load_encoder(encoder_name)
    if not encoder.has_weights:
        raise ValueError(f"A place index needs an encoder that can be saved, {encoder_name} cannot.")
    catalogue = _read_images(folder)
    indexed = index_images(catalogue)
    check_zones(indexed)
    extractor = descriptor_extractor(encoder, images, accelerator)
    descriptors = extract_descriptors(extractor, catalogue, accelerator, work=work, cache=cache)
    if not accelerator.is_main_process:
        return
    indexed = _without(indexed, descriptors.missing)
    metadata = IndexMetadata(
        kind=faiss,
        probes=probes,
        encoder=descriptor_metadata(encoder),
        image_size=extractor.image_size,
        database_preprocessing=images.database_preprocessing,
        query_preprocessing=query_preprocessing,
        orientation=images.orientation,
        images=len(indexed),
        **new_files(),
    )
    index = build_index(descriptors, faiss)
    if holds_place_index(out):  # another command wrote it meanwhile
        raise _already_exists(out)
    save_encoder(out / ENCODER_FOLDER, encoder, provenance={"encoder": encoder_name}, recalls={})
    if not save_generation(out, None, metadata, index, indexed):
        raise _already_exists(out)


def add_to_place_index(
    index_folder: Path, folder: Path, *, accelerator: Accelerator, work: WorkOptions, cache: CacheOptions
) -> None:
    """Extract the descriptors of a folder of images and add them to a place index; those it holds are skipped."""
    index = open_place_index(index_folder)
    catalogue = _read_images(folder)
    images = index_images(catalogue)
    check_zones(index.catalogue, images)
    known = rows_in_index(index, images)
    if len(known):
        LOGGER.info("%d of %d images are in the index already", len(known), len(catalogue))
    if len(known) == len(catalogue):
        return
    extractor = index.extractor(index.metadata.database_preprocessing, accelerator)
    descriptors = extract_descriptors(extractor, _without(catalogue, known), accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        add_images(index, _without(images, known), descriptors)
        if index.metadata.calibration is not None:
            LOGGER.warning("confidence was calibrated without these images: run `progeo index calibrate` again")


def add_images(index: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> None:
    """Add images to the current state of a place index.

    Args:
        index: the index, whose encoder extracted the descriptors.
        images: N images as `index_images` returns them.
        descriptors: (N, D); images whose rows are excluded are skipped.

    Raises:
        ValueError: the index was rebuilt meanwhile, with another encoder or other preprocessing.
    """
    while not _added(index, images, descriptors):
        LOGGER.info("another command changed %s meanwhile: adding to what it holds now", index.folder)
        before, index = index, open_place_index(index.folder)
        if any(getattr(index.metadata, name) != getattr(before.metadata, name) for name in _DESCRIPTORS_DEPEND_ON):
            raise ValueError(f"{index.folder} was built anew meanwhile, and differently: run this command again.")


def calibrate_place_index(
    index_folder: Path,
    folder: Path,
    *,
    radius_m: float,
    accelerator: Accelerator,
    work: WorkOptions,
    cache: CacheOptions,
) -> None:
    """Calibrate the confidence of a place index on photos of known position.

    Photos that are images of the index themselves are skipped: unlike new photos, they would always be found.

    Args:
        radius_m: maximum distance of a correct match in meters.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, or none is localized
            correctly.
    """
    index = open_place_index(index_folder)
    if num_unknown := int((~has_position(index.catalogue)).sum()):
        raise ValueError(
            f"{num_unknown:,} of {len(index.catalogue):,} images of {index_folder} have no position, so that matches "
            f"cannot be checked: build the index of images with positions."
        )
    photos = read_catalogue(folder)
    images = index_images(photos)
    check_zones(index.catalogue, images)
    photos = _without(photos, rows_in_index(index, images))
    _check_enough(len(photos), index, photos)
    extractor = index.extractor(index.metadata.query_preprocessing, accelerator)
    descriptors = extract_descriptors(extractor, photos, accelerator, work=work, cache=cache)
    if not accelerator.is_main_process:
        return
    photos = _without(photos, descriptors.missing)
    queries = np.concatenate(list(descriptors.parts()))
    while True:
        calibration = _calibration(index, photos, queries, radius_m)
        if commit(index_folder, index.metadata, replace(index.metadata, calibration=calibration)):
            break
        LOGGER.info("another command changed %s meanwhile: searching what it holds now", index_folder)
        index = open_place_index(index_folder)
    LOGGER.info(
        "%d of %d photos localized within %g m; confidence is off by %.1f points on average",
        calibration.num_correct,
        len(photos),
        radius_m,
        100 * calibration.error,
    )


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


def _without(catalogue: Catalogue, rows: np.ndarray) -> Catalogue:
    return catalogue.take(np.delete(np.arange(len(catalogue)), rows))


def _added(index: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> bool:
    """Add images to the index as it was opened; returns False if another command has changed it."""
    try:
        faiss_index = load_index(index.folder / index.metadata.faiss_file)
    except ValueError:
        if read_metadata(index.folder) == index.metadata:
            raise
        return False
    new = descriptors.without(rows_in_index(index, images))
    if not len(new):
        return True
    add_to_index(faiss_index, new)
    table = pa.concat_tables([index.catalogue.table, _without(images, new.missing).table])
    metadata = replace(index.metadata, images=len(table), **new_files())
    return save_generation(index.folder, index.metadata, metadata, faiss_index, Catalogue(index.folder, table))


def _calibration(index: PlaceIndex, photos: Catalogue, descriptors: np.ndarray, radius_m: float) -> Calibration:
    """Fit the confidence to those of Q photos, with descriptors (Q, D), that are not in the index."""
    neighbors = index.search(descriptors)
    is_new = ~find_copies(photos, index.catalogue, neighbors.rows)
    _check_enough(int(is_new.sum()), index, photos)
    if not is_new.all():
        LOGGER.warning("%d photos are images of the index themselves, and skipped", int((~is_new).sum()))
    first = neighbors.rows[:, 0]
    matches_m, photos_m = positions_m(index.catalogue.take(np.maximum(first, 0)), index_images(photos))
    has_result = is_new & (first >= 0)
    correct = has_result & (np.linalg.norm(matches_m - photos_m, axis=1) <= radius_m)
    if not correct.any():
        raise ValueError(
            f"None of the {int(is_new.sum())} photos in {photos.folder} was localized within {radius_m:g} m: "
            f"were they taken where the images of {index.folder} were?"
        )
    features = index.confidence_features(neighbors, radius_m)
    return calibrate(features[has_result], correct[has_result], radius_m)


def _check_enough(count: int, index: PlaceIndex, photos: Catalogue) -> None:
    if count < _MIN_PHOTOS:
        raise ValueError(
            f"Calibration needs at least {_MIN_PHOTOS} photos that can be read and are not images of {index.folder} "
            f"themselves, {photos.folder} has {count}."
        )
