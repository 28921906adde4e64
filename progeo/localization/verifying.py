"""Verify the matches of a place index: match them with the photo, and rank them by inliers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from progeo.atomic import temporary_file
from progeo.data.decode import read_image
from progeo.engine.log import LOGGER
from progeo.evaluation.search import Neighbors
from progeo.files import each_file
from progeo.image_files import Orientation
from progeo.localization.confidence import verified_features
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m
from progeo.verification.feature_file import FeatureFile, open_feature_file, write_feature_file
from progeo.verification.local_features import extract_local_features
from progeo.verification.matchers import Matcher, Pair, build_matcher
from progeo.verification.rerank import NOT_MATCHED, Candidates, rerank

if TYPE_CHECKING:
    from progeo.localization.place_index import PlaceIndex

DEFAULT_MATCHER = "sift"
DEFAULT_TOP = 20


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
        num_matched = max(1, int((self.inliers != NOT_MATCHED).sum(axis=1).max()))
        rows = np.maximum(self.neighbors.rows[:, :num_matched], 0)
        (matches_m,) = positions_m(index.catalogue.take(rows.ravel()))
        inliers = np.maximum(self.inliers[:, :num_matched], 0)
        features = index.confidence_features(self.nearest, radius_m)
        return verified_features(features, inliers, matches_m.reshape(*rows.shape, 2), radius_m)

    def confidences(self, index: "PlaceIndex") -> np.ndarray:
        """Return probabilities (Q,) that the first matches of verified photos are correct, by a calibrated index."""
        verification = index.metadata.verification
        if verification is None:
            return index.confidences(self.nearest)
        return verification.calibration.confidences(self.features(index, verification.calibration.radius_m))


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
        """Verify the matches of some photos.

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
        self.candidates.warn_of_gone()
        first_only = np.argsort(np.arange(rows.shape[1]) != found.order[:, :1], axis=1, kind="stable")
        orders = ((rows, found.order), (distances, found.order), (nearest.rows, first_only))
        for values, order in (*orders, (nearest.distances, first_only)):
            values[chosen] = np.take_along_axis(values[chosen], order, axis=1)
        inliers[chosen] = found.inliers
        is_verified[chosen] = found.verified
        pairs = {(int(chosen[number]), rank): pair for (number, rank), pair in found.pairs.items()}
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
        if built.stores_features and stored is not None:
            return stored.features(row)
        return built.prepare(read_image(index.catalogue.path(row), index.metadata.orientation))

    return Verifier(built, top, Candidates(prepared))


@contextmanager
def stored_features(images: Catalogue, folder: Path, orientation: Orientation) -> Iterator[FeatureFile]:
    """Extract the local features of images into a temporary file in a folder; an image that cannot be read has none."""

    def features(row: int) -> bytes | None:
        try:
            return extract_local_features(read_image(images.path(row), orientation)).to_bytes()
        except (OSError, ValueError):
            return None

    with temporary_file(folder / "features.arrow") as path:
        found = each_file(features, range(len(images)), total=len(images), description="local features")
        write_feature_file(path, found)
        stored = open_feature_file(path)
        if num_missing := stored.table["features"].null_count:
            LOGGER.warning("%d images cannot be read any more: they have no local features", num_missing)
        yield stored
