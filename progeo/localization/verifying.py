"""Verify the matches of a place index: match them with the photo, and rank them by inliers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from progeo.data.decode import read_image
from progeo.evaluation.search import Neighbors
from progeo.files import each_file
from progeo.image_files import Orientation
from progeo.localization.confidence import confidences_beyond_chance, verified_features
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m
from progeo.verification.feature_file import JoinedFeatures, StoredFeatures, to_store
from progeo.verification.local_features import LocalFeatures, extract_local_features
from progeo.verification.matchers import Matcher, Pair, build_matcher
from progeo.verification.rerank import NOT_MATCHED, Candidates, rerank

if TYPE_CHECKING:
    from progeo.localization.place_index import PlaceIndex

DEFAULT_MATCHER = "sift"
DEFAULT_TOP = 20
_MIN_MATCHED = 0.75
"""Share of the first matches of a photo that must be matched with it; of fewer, the best is often not that of all."""


@dataclass(frozen=True, eq=False)
class Verified:
    """Matches of Q photos, some of which were verified."""

    neighbors: Neighbors
    """The matches, re-ranked."""
    is_verified: np.ndarray
    """Whether the matches of a photo were verified, bool (Q,)."""
    inliers: np.ndarray
    """Inliers of each match, int64 (Q, K); -1 where it was not matched."""
    pairs: Mapping[tuple[int, int], Pair]
    """Matched pairs by photo and rank, of the first ranks."""
    nearest: Neighbors
    """The first match of each photo, then the other matches by descriptor distance, for its confidence."""

    def features(self, index: "PlaceIndex", radius_m: float) -> np.ndarray:
        """Compute the confidence features (Q, 3) of verified photos, see `verified_features`."""
        num_matched = max(1, int((self.inliers != NOT_MATCHED).sum(axis=1).max(initial=0)))
        rows = np.maximum(self.neighbors.rows[:, :num_matched], 0)
        (matches_m,) = positions_m(index.catalogue.take(rows.ravel()))
        inliers = np.maximum(self.inliers[:, :num_matched], 0)
        features = index.confidence_features(self.nearest, radius_m)
        return verified_features(features, inliers, matches_m.reshape(*rows.shape, 2), radius_m)

    def confidences(self, index: "PlaceIndex", unverified: np.ndarray) -> np.ndarray:
        """Return probabilities (Q,) that the first matches of photos are correct.

        They are NaN for verified photos if the index was calibrated without verification.

        Args:
            unverified: those before verification, (Q,).
        """
        if index.metadata.verification is None:
            return np.where(self.is_verified, np.nan, unverified)
        calibration = index.metadata.verification.calibration
        confidences = calibration.confidences(self.features(index, calibration.radius_m))
        confidences = confidences_beyond_chance(confidences, unverified, self.inliers[:, 0])
        return np.where(self.is_verified, confidences, unverified)


@dataclass(frozen=True, eq=False)
class Verifier:
    """Matches photos with the images of a place index."""

    matcher: Matcher
    top: int
    """Number of first matches of a photo that are matched with it."""
    candidates: Candidates

    def verified(
        self,
        pixels: Callable[[int], Tensor],
        neighbors: Neighbors,
        chosen: np.ndarray,
        *,
        num_kept: int,
        hidden: bool = True,
    ) -> Verified:
        """Verify the matches of some photos; one of whose first matches too few can be matched is not verified.

        Args:
            pixels: returns the pixels of a photo, uint8 (3, H, W), by its row.
            neighbors: matches of Q photos.
            chosen: rows of the photos to verify, int64 (n,).
            num_kept: number of ranks whose pairs are kept.
            hidden: show no progress.
        """
        rows, distances = neighbors.rows.copy(), neighbors.distances.copy()
        nearest = Neighbors(rows.copy(), distances.copy())
        inliers = np.full(rows.shape, NOT_MATCHED, np.int64)
        is_verified = np.zeros(len(rows), bool)
        if not len(chosen):
            return Verified(neighbors, is_verified, inliers, {}, nearest)
        found = rerank(
            self.matcher,
            lambda number: pixels(int(chosen[number])),
            self.candidates,
            rows[chosen],
            top=self.top,
            num_kept=num_kept,
            hidden=hidden,
        )
        self.candidates.warn_of_gone(
            f"A photo of whose first {self.top} matches fewer than {100 * _MIN_MATCHED:.0f} % can be matched is not "
            f"verified: put the images back, or build the index anew with `progeo index build --verify`."
        )
        num_wanted = (rows[chosen, : self.top] >= 0).sum(axis=1)
        is_enough = found.verified & ((found.inliers != NOT_MATCHED).sum(axis=1) >= _MIN_MATCHED * num_wanted)
        chosen_verified, ranks = chosen[is_enough], found.order[is_enough]
        first_only = np.argsort(np.arange(rows.shape[1]) != ranks[:, :1], axis=1, kind="stable")
        orders = ((rows, ranks), (distances, ranks), (nearest.rows, first_only), (nearest.distances, first_only))
        for values, order in orders:
            values[chosen_verified] = np.take_along_axis(values[chosen_verified], order, axis=1)
        inliers[chosen_verified] = found.inliers[is_enough]
        is_verified[chosen_verified] = True
        pairs = {(int(chosen[number]), rank): pair for (number, rank), pair in found.pairs.items() if is_enough[number]}
        return Verified(Neighbors(rows, distances), is_verified, inliers, pairs, nearest)


def build_verifier(index: "PlaceIndex", matcher: str = DEFAULT_MATCHER, top: int = DEFAULT_TOP) -> Verifier:
    """Build a verifier of the matches of an index.

    Raises:
        ValueError: the index is of classes, or there is no such matcher.
    """
    if index.metadata.holds_classes:
        raise ValueError(f"`verify` matches images, and {index.folder} is of classes: omit it.")
    built, stored = build_matcher(matcher, device=index.processor.device), index.features

    def prepared(row: int) -> Any:
        if built.stores_features and stored is not None and (features := _features(index, stored, row)) is not None:
            return features
        return built.prepare(read_image(index.catalogue.path(row), index.metadata.orientation))

    return Verifier(built, top, Candidates(prepared))


def _features(index: "PlaceIndex", stored: JoinedFeatures, row: int) -> LocalFeatures | None:
    try:
        return stored.features(row)
    except ValueError as error:
        raise ValueError(f"The local features of {index.catalogue.path(row)} cannot be read: {error}") from None


def extracted_features(images: Catalogue, orientation: Orientation) -> Iterator[StoredFeatures]:
    """Extract the local features of images in turn; an image that cannot be read has none."""

    def features(row: int) -> StoredFeatures:
        try:
            return to_store(extract_local_features(read_image(images.path(row), orientation)).to_bytes())
        except (OSError, ValueError):
            return to_store(None)

    return each_file(features, range(len(images)), total=len(images), description="local features")
