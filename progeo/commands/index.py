"""Build a place index, add images to it, and calibrate its confidence."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from progeo.config.evaluation import IndexAddSettings, IndexBuildSettings, IndexCalibrateSettings
from progeo.config.options import options_of
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.copies import find_copies
from progeo.evaluation.search import build_index
from progeo.export.weights import load_encoder
from progeo.features.descriptors import descriptor_extractor, extract_descriptors, identity
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.localization.confidence import Calibration, calibrate
from progeo.localization.index_folder import About, commit, holds_place_index, new_files, save_generation
from progeo.localization.place_index import (
    PlaceIndex,
    add_images,
    has_position,
    held_by,
    open_place_index,
    placed,
    save_model,
)
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones, positions_m

_FEWEST_PHOTOS = 20


def build_place_index(settings: IndexBuildSettings) -> Path:
    """Extract the descriptors of a folder of images and write a place index; returns its folder.

    Raises:
        ValueError: the folder holds an index already, or the encoder has no weights.
    """
    start_log(None)
    there_already = f"{settings.out} holds a place index already: add to it, or name another --out."
    if holds_place_index(settings.out):
        raise ValueError(there_already)
    accelerator = start_accelerator(settings.mixed_precision)
    encoder = load_encoder(settings.encoder)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"A place index needs an encoder with weights of its own, {settings.encoder} has none.")
    catalogue = _images(settings.folder)
    images = placed(catalogue)
    check_zones(images)
    work, cache = options_of(WorkOptions, settings), options_of(CacheOptions, settings)
    extractor = descriptor_extractor(encoder, options_of(ImageOptions, settings), accelerator)
    descriptors = extract_descriptors(extractor, catalogue, accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        images = images.take(np.delete(np.arange(len(images)), descriptors.missing))
        about = About(
            kind=settings.index,
            probes=settings.probes,
            encoder=identity(encoder),
            image_size=extractor.image_size,
            database_preprocessing=settings.database_preprocessing,
            query_preprocessing=settings.query_preprocessing,
            orientation=settings.orientation,
            images=len(images),
            **new_files(),
        )
        index = build_index(descriptors, settings.index)
        if holds_place_index(settings.out):  # another command wrote it meanwhile
            raise ValueError(there_already)
        save_model(settings.out, encoder, settings.encoder)
        if not save_generation(settings.out, None, about, index, images):
            raise ValueError(there_already)
    return settings.out


def add_to_place_index(settings: IndexAddSettings) -> Path:
    """Add the images of a folder that a place index does not hold yet; returns the folder of the index."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    opened = open_place_index(settings.index)
    catalogue = _images(settings.folder)
    images = placed(catalogue)
    check_zones(opened.catalogue, images)
    held = held_by(opened, images)
    if len(held):
        LOGGER.info("%d of %d images are in the index already", len(held), len(catalogue))
    if len(held) == len(catalogue):
        return settings.index
    new = catalogue.take(np.delete(np.arange(len(catalogue)), held))
    work, cache = options_of(WorkOptions, settings), options_of(CacheOptions, settings)
    extractor = opened.extractor(opened.about.database_preprocessing, accelerator)
    descriptors = extract_descriptors(extractor, new, accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        add_images(opened, images.take(np.delete(np.arange(len(images)), held)), descriptors)
        if opened.about.calibration is not None:
            LOGGER.warning("confidence was calibrated before these were in: run `progeo index calibrate` again")
    return settings.index


def calibrate_place_index(settings: IndexCalibrateSettings) -> Path:
    """Calibrate the confidence of a place index on photos of known position; returns the folder of the index.

    Photos that are images of the index themselves are skipped: unlike new photos, they would always be found.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, or none is localized
            correctly.
    """
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    opened = open_place_index(settings.index)
    placeless = int((~has_position(opened.catalogue)).sum())
    if placeless:
        raise ValueError(
            f"{placeless:,} of {len(opened.catalogue):,} images of {settings.index} have no position, so that nobody "
            f"can tell whether photos are found at their places: build the index of images with positions."
        )
    photos = read_catalogue(settings.folder)
    places = placed(photos)
    check_zones(opened.catalogue, places)
    held = held_by(opened, places)
    _check_enough(len(photos) - len(held), settings)
    photos = photos.take(np.delete(np.arange(len(photos)), held))
    work, cache = options_of(WorkOptions, settings), options_of(CacheOptions, settings)
    extractor = opened.extractor(opened.about.query_preprocessing, accelerator)
    descriptors = extract_descriptors(extractor, photos, accelerator, work=work, cache=cache)
    if not accelerator.is_main_process:
        return settings.index
    photos = photos.take(np.delete(np.arange(len(photos)), descriptors.missing))
    while True:
        calibration = _calibration(opened, photos, descriptors, settings)
        if commit(settings.index, opened.about, replace(opened.about, calibration=calibration)):
            break
        LOGGER.info("another command changed %s meanwhile: searching what it holds now", settings.index)
        opened = open_place_index(settings.index)
    LOGGER.info(
        "%d of %d photos found within %g m; confidence is off by %.1f points on average",
        calibration.num_right,
        len(photos),
        settings.radius_m,
        100 * calibration.error,
    )
    return settings.index


def _images(folder: Path) -> Catalogue:
    """Read the images of a folder for an index; warn if some have no position."""
    catalogue = read_catalogue(folder, positions="optional")
    placeless = int((~has_position(catalogue)).sum())
    if placeless:
        LOGGER.warning(
            "%s of %s images of %s have no position: what is found is shown, but not where it is; "
            "`progeo dataset from-table` takes positions from a table",
            f"{placeless:,}",
            f"{len(catalogue):,}",
            folder,
        )
    return catalogue


def _calibration(
    index: PlaceIndex, photos: Catalogue, descriptors: ShardedRows, settings: IndexCalibrateSettings
) -> Calibration:
    """Fit the confidence to photos that are not in the index."""
    found = index.search(np.concatenate(list(descriptors.parts())))
    new = ~find_copies(photos, index.catalogue, found.rows)
    _check_enough(int(new.sum()), settings)
    if not new.all():
        LOGGER.warning("%d photos are images of the index themselves, and skipped", int((~new).sum()))
    matches_m, photos_m = positions_m(index.catalogue.take(np.maximum(found.rows[:, 0], 0)), placed(photos))
    answered = new & (found.rows[:, 0] >= 0)
    right = answered & (np.linalg.norm(matches_m - photos_m, axis=1) <= settings.radius_m)
    if not right.any():
        raise ValueError(
            f"None of the {int(new.sum())} photos in {settings.folder} was found within {settings.radius_m:g} m: "
            f"were they taken where the images of {settings.index} were?"
        )
    return calibrate(index.evidence(found, settings.radius_m)[answered], right[answered], settings.radius_m)


def _check_enough(count: int, settings: IndexCalibrateSettings) -> None:
    if count < _FEWEST_PHOTOS:
        raise ValueError(
            f"Confidence wants at least {_FEWEST_PHOTOS} photos that can be read and are not images of "
            f"{settings.index} themselves, {settings.folder} has {count}."
        )
