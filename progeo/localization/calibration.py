"""Calibrate the confidence of a place index on photos of known position."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from accelerate import Accelerator
from torch import Tensor

from progeo.data.decode import read_image
from progeo.engine.log import LOGGER
from progeo.evaluation.copies import find_copies
from progeo.evaluation.search import Neighbors
from progeo.features.descriptors import extract_descriptors
from progeo.features.options import CacheOptions, WorkOptions
from progeo.localization.adaptive import Choice, choose_photos
from progeo.localization.confidence import (
    Verification,
    VerifiedCalibration,
    calibrate,
    calibration_error,
    confidences_beyond_chance,
    held_out_confidences,
)
from progeo.localization.index_folder import commit, finish_update
from progeo.localization.index_metadata import IndexMetadata, check_format
from progeo.localization.place_index import PlaceIndex, has_position, index_images, open_place_index, rows_in_index
from progeo.localization.verifying import Verifier, build_verifier
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones, positions_m
from progeo.progress import phase

_MIN_PHOTOS = 20


def calibrate_place_index(
    index_folder: Path,
    folder: Path,
    *,
    radius_m: float,
    max_loss: float | None = None,
    matcher: str | None = None,
    accelerator: Accelerator,
    work: WorkOptions,
    cache: CacheOptions,
) -> None:
    """Calibrate the confidence of a place index on photos of known position.

    Photos that are images of the index themselves are skipped: unlike new photos, they would always be found.

    Args:
        radius_m: maximum distance of a correct match in meters.
        max_loss: also set the probes of an index to the fewest that lose at most so many points of R@1 against a search
            of all lists; None keeps them.
        matcher: also find which photos to verify with this matcher, see `build_matcher`; None verifies none.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, none is localized
            correctly, the index has no lists to choose from, or the matcher cannot be used.
    """
    if accelerator.is_main_process:
        finish_update(index_folder)
    index = open_place_index(index_folder, accelerator)
    check_format(index.metadata, index_folder)
    if max_loss is not None and not index.store.num_lists:
        raise ValueError(
            f"`max_loss` is for an index of inverted lists, and {index_folder} is {index.metadata.kind}: build it with "
            f"`faiss` cells or for example IVF1024,Flat."
        )
    verifier = None if matcher is None else build_verifier(index, matcher)
    if num_unknown := int((~has_position(index.images)).sum()):
        raise ValueError(
            f"{num_unknown:,} of {index.metadata.images:,} images of {index_folder} have no position, so that matches "
            f"cannot be checked: build the index of images with positions."
        )
    photos = read_catalogue(folder)
    images = index_images(photos)
    check_zones(index.images, images)
    photos = photos.without(rows_in_index(index, images))
    _check_enough(len(photos), index)
    found = [
        extract_descriptors(extractor, photos, accelerator, work=work, cache=cache)
        for extractor in index.query_extractors
    ]
    if not accelerator.is_main_process:
        return
    missing = np.unique(np.concatenate([each.missing for each in found]))
    photos = photos.without(missing)
    queries = [np.concatenate(list(each.without(missing).parts())) for each in found]
    while True:
        calibrated, outcome = _calibrated(index, photos, queries, radius_m, max_loss, verifier)
        if commit(index_folder, index.metadata, calibrated):
            break
        LOGGER.info("another command changed %s meanwhile: searching what it holds now", index_folder)
        index = open_place_index(index_folder, accelerator)
        verifier = None if matcher is None else build_verifier(index, matcher)
    LOGGER.info(
        "%d of %d photos localized within %g m; confidence is off by %.1f points on average",
        outcome.num_correct,
        len(photos),
        radius_m,
        100 * outcome.error,
    )


@dataclass(frozen=True)
class _Outcome:
    """What the calibrated index answers for the photos, verified ones among them."""

    num_correct: int
    error: float
    """Expected calibration error, see `Calibration`."""


def _calibrated(
    index: PlaceIndex,
    photos: Catalogue,
    queries: Sequence[np.ndarray],
    radius_m: float,
    max_loss: float | None,
    verifier: Verifier | None,
) -> tuple[IndexMetadata, _Outcome]:
    """Return the metadata of an index with a calibration fitted to those of Q photos that are not in it.

    Args:
        queries: descriptors of the photos, see `PlaceIndex.search`.
        max_loss: choose the number of probes, too, see `calibrate_place_index`.
        verifier: find which photos it should verify, too; None for none.
    """
    with phase(f"searching for {len(photos):,} photos"):
        neighbors = index.search(*queries)
    if not index.metadata.holds_classes:
        new = np.flatnonzero(~find_copies(photos, index.catalogue, neighbors.rows))
        _check_enough(len(new), index)
        if num_copies := len(photos) - len(new):
            LOGGER.warning("%d photos are images of the index themselves, and skipped", num_copies)
        photos, queries = photos.take(new), [each[new] for each in queries]
        neighbors = Neighbors(neighbors.rows[new], neighbors.distances[new])
    probes = index.metadata.probes
    if max_loss is not None:
        probes = _fewest_probes(index, photos, queries, radius_m, max_loss)
        neighbors = index.search(*queries, probes=probes)
    correct = _first_is_correct(index, photos, neighbors, radius_m)
    if not correct.any():
        raise ValueError(
            f"None of the {len(photos)} photos was localized within {radius_m:g} m: were they taken where the "
            f"{index.metadata.rows_are} of {index.folder} were?"
        )
    has_result = neighbors.rows[:, 0] >= 0
    features = index.confidence_features(neighbors, radius_m)
    calibration = calibrate(features[has_result], correct[has_result], radius_m)
    verification, outcome = None, _Outcome(calibration.num_correct, calibration.error)
    if verifier is not None:
        with_result = Neighbors(neighbors.rows[has_result], neighbors.distances[has_result])
        photos = photos.take(np.flatnonzero(has_result))
        verification, outcome = _verification(index, verifier, photos, with_result, radius_m)
    return replace(index.metadata, calibration=calibration, verification=verification, probes=probes), outcome


def _verification(
    index: PlaceIndex, verifier: Verifier, photos: Catalogue, neighbors: Neighbors, radius_m: float
) -> tuple[Verification, _Outcome]:
    """Find which of the photos a verifier should verify, and calibrate the confidence of verified ones."""

    def pixels(row: int) -> Tensor:
        return read_image(photos.path(row), index.metadata.orientation)

    verified = verifier.verified(pixels, neighbors, np.arange(len(photos)), num_kept=0, hidden=False)
    usable = np.flatnonzero(verified.is_verified)
    if len(usable) < _MIN_PHOTOS:
        raise ValueError(
            f"`verify` needs the images of {index.folder} or their local features, and {len(usable)} of {len(photos)} "
            f"photos could be matched with any: put the images back, or build the index anew with `progeo index build "
            f"--verify`."
        )
    before, after = (_first_is_correct(index, photos, each, radius_m) for each in (neighbors, verified.neighbors))
    confidences = held_out_confidences(index.confidence_features(neighbors, radius_m), before, radius_m)
    features = verified.features(index, radius_m)[usable]
    by_inliers = confidences.copy()
    by_inliers[usable] = confidences_beyond_chance(
        held_out_confidences(features, after[usable], radius_m), confidences[usable], verified.inliers[usable, 0]
    )
    choice = choose_photos(confidences[usable], before[usable], after[usable])
    calibration = calibrate(features, after[usable], radius_m)
    assert isinstance(calibration, VerifiedCalibration)
    _log_choice(choice, before[usable], after[usable], matcher=verifier.matcher.name)
    is_verified = np.zeros(len(photos), bool)
    is_verified[usable] = choice.is_verified
    correct, answered = np.where(is_verified, after, before), np.where(is_verified, by_inliers, confidences)
    outcome = _Outcome(int(correct.sum()), calibration_error(answered, correct))
    return Verification(verifier.matcher.name, verifier.top, choice.below, calibration), outcome


def _log_choice(choice: Choice, before: np.ndarray, after: np.ndarray, *, matcher: str) -> None:
    adaptive = np.where(choice.is_verified, after, before)
    LOGGER.info(
        "first matches correct: %.1f %% before, %.1f %% after matching all photos with %s, %.1f %% after matching the "
        "%.1f %% of them that are chosen (cross-validated)",
        *(100 * before.mean(), 100 * after.mean(), matcher, 100 * adaptive.mean(), 100 * choice.is_verified.mean()),
    )
    if choice.below == 0:
        LOGGER.warning(
            "verification does not help on these photos more than chance would: it is switched off, unless `verify` is "
            "given"
        )
    elif choice.below == 1:
        LOGGER.info("all photos will be verified")
    else:
        LOGGER.info("photos with a confidence below %.2f will be verified", choice.below)


def _first_is_correct(index: PlaceIndex, photos: Catalogue, neighbors: Neighbors, radius_m: float) -> np.ndarray:
    """Return whether the first match of each photo lies within a radius, bool (Q,)."""
    first = neighbors.rows[:, 0]
    matches_m, photos_m = positions_m(index.catalogue.take(np.maximum(first, 0)), index_images(photos))
    return (first >= 0) & (np.linalg.norm(matches_m - photos_m, axis=1) <= radius_m)


def _fewest_probes(
    index: PlaceIndex, photos: Catalogue, queries: Sequence[np.ndarray], radius_m: float, max_loss: float
) -> int:
    """Find by bisection the smallest number of probes whose R@1 loses at most some points against all lists."""
    counters: Any = faiss.cvar
    num_lists, statistics = index.store.num_lists, counters.indexIVF_stats
    table: dict[int, tuple[float, float]] = {}

    def is_enough(probes: int) -> bool:
        statistics.reset()
        with phase(f"searching with {probes:,} of {num_lists:,} probes"):
            neighbors = index.search(*queries, probes=probes)
        read = statistics.ndis / len(photos) / len(index.catalogue)
        table[probes] = float(100 * _first_is_correct(index, photos, neighbors, radius_m).mean()), 100 * read
        return table[probes][0] >= table[num_lists][0] - max_loss

    is_enough(num_lists)
    too_few, enough = 0, 1
    while enough < num_lists and not is_enough(enough):
        too_few, enough = enough, min(2 * enough, num_lists)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    for probes, (recall, read) in sorted(table.items()):
        mark = "  <- chosen" if probes == enough else ""
        LOGGER.info("probes %6d   R@1 %5.1f   %6.2f %% of the rows read%s", probes, recall, read, mark)
    return enough


def _check_enough(count: int, index: PlaceIndex) -> None:
    if count < _MIN_PHOTOS:
        raise ValueError(
            f"Calibration needs at least {_MIN_PHOTOS} photos that can be read and are not images of {index.folder} "
            f"themselves, got {count}: `progeo dataset split` holds some out before an index is built."
        )
