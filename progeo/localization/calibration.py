"""Calibrate the confidence of a place index on photos of known position."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.copies import find_copies
from progeo.features.descriptors import extract_descriptors
from progeo.features.options import CacheOptions, WorkOptions
from progeo.localization.confidence import AnyCalibration, calibrate
from progeo.localization.index_folder import commit
from progeo.localization.place_index import PlaceIndex, has_position, index_images, open_place_index, rows_in_index
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones, positions_m

_MIN_PHOTOS = 20


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
    photos = photos.without(rows_in_index(index, images))
    _check_enough(len(photos), index, photos)
    extractor = index.extractor(index.metadata.query_preprocessing, accelerator)
    descriptors = extract_descriptors(extractor, photos, accelerator, work=work, cache=cache)
    if not accelerator.is_main_process:
        return
    photos = photos.without(descriptors.missing)
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


def _calibration(index: PlaceIndex, photos: Catalogue, descriptors: np.ndarray, radius_m: float) -> Calibration:
    """Fit the confidence to those of Q photos, with descriptors (Q, D), that are not in the index."""
    neighbors = index.search(descriptors)
    is_new = np.ones(len(photos), bool)
    if not index.metadata.holds_classes:
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
