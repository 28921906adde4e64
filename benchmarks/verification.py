"""Measure what matching the first candidates of queries with them gains, for all queries and adaptively.

Run `python -m benchmarks.verification FOLDER ENCODER...`: FOLDER holds `database` and `queries`, an encoder is a folder
or a name such as thumbnail or random, a small network with random weights. The 20 first candidates of every query are
matched by SIFT. Confidences, and the threshold below which the adaptive rule matches, are fitted to four fifths of the
queries and measured on the others, for all fifths, in 20 random partitions. As a calibration error of few queries is
mostly chance, that of perfect confidences is printed beside it: of outcomes that are drawn from the confidences.
"""

import argparse
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from progeo.data.decode import read_image
from progeo.evaluation.search import Neighbors, nearest_neighbors
from progeo.export.weights import load_encoder
from progeo.localization.adaptive import choose_photos
from progeo.localization.confidence import (
    calibrate,
    calibration_error,
    confidence_features,
    held_out_confidences,
    verified_features,
)
from progeo.localization.extraction import extract
from progeo.models.encoder import Encoder, build_encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import positions_m
from progeo.verification.local_features import LocalFeatures
from progeo.verification.matchers import SiftMatcher
from progeo.verification.rerank import Candidates, rerank

TOP, RADIUS_M, NUM_PARTITIONS, NUM_PARTS = 20, 25.0, 20, 5
RECALLS = ("before", "always", "adaptive", "matched")
ERRORS = ("before", "always", "perfect", "adaptive")
SQUARES = ("no inliers", "inliers")
WIDTH = 11


def main() -> None:
    """Print a line for every encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("encoders", nargs="+")
    options = parser.parse_args()
    database, queries = (Images(options.folder / name) for name in ("database", "queries"))
    start = time.process_time()
    features = [database.features(row) for row in range(len(database.catalogue))]
    milliseconds = 1000 * (time.process_time() - start) / len(features)
    kilobytes = sum(len(each.to_bytes()) for each in features) / len(features) / 1000
    print(f"{options.folder}: {len(features)} images, {len(queries.catalogue)} queries")
    print(f"local features: {milliseconds:.0f} ms of CPU and {kilobytes:.0f} kB an image")
    groups = ((" R@1, %: ", RECALLS), (" calibration error, points: ", ERRORS), (" squared error, points: ", SQUARES))
    print(f"{'':16}{''.join(f'{title:-^{WIDTH * len(columns)}}' for title, columns in groups)}{'CPU, ms':>{WIDTH}}")
    columns = (*RECALLS, *ERRORS, *SQUARES, "a pair")
    print(f"{'':16}{''.join(f'{column:>{WIDTH}}' for column in columns)}")
    for name in options.encoders:
        pairs = matched(load(name), database, queries, features)
        values = np.mean([pairs.measured(seed) for seed in range(NUM_PARTITIONS)], axis=0)
        numbers = [*values.tolist(), pairs.milliseconds]
        print(f"{Path(name).name[:15]:16}{''.join(f'{number:{WIDTH}.1f}' for number in numbers)}", flush=True)


@dataclass(frozen=True)
class Images:
    """The images of a folder."""

    folder: Path

    @cached_property
    def catalogue(self) -> Catalogue:
        """Their catalogue."""
        return read_catalogue(self.folder)

    def features(self, row: int) -> LocalFeatures:
        """Extract the local features of an image."""
        return SiftMatcher().prepare(read_image(self.catalogue.path(row)))


def load(name: str) -> Encoder:
    """Load an encoder, or build the one with random weights."""
    if name == "random":
        return build_encoder("tiny-resnet", "random", 128, descriptor_dim=256).eval()
    return load_encoder(name)


@dataclass(frozen=True)
class Pairs:
    """First matches of all queries, before and after matching."""

    before: np.ndarray
    """Whether the first candidate of each query is correct by its descriptor, bool (Q,)."""
    after: np.ndarray
    """Whether the one with most inliers is, bool (Q,)."""
    features: np.ndarray
    """Confidence features before, (Q, 2)."""
    verified: np.ndarray
    """Confidence features after, (Q, 3)."""
    milliseconds: float
    """CPU time of a pair."""

    def measured(self, seed: int) -> tuple[float, ...]:
        """Return the values of the columns, in percent, by one random partition of the queries."""
        parts = np.random.default_rng(seed).permutation(len(self.before)) % NUM_PARTS
        chosen = np.empty(len(parts), bool)
        confidences = np.empty((3, len(parts)))
        for part in range(NUM_PARTS):
            fitted, measured = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
            own = held_out_confidences(self.features[fitted], self.before[fitted], RADIUS_M)
            below = choose_photos(own, self.before[fitted], self.after[fitted]).below
            kinds = (self.features, self.before), (self.verified, self.after), (self.verified[:, :2], self.after)
            for row, (features, correct) in enumerate(kinds):
                model = calibrate(features[fitted], correct[fitted], RADIUS_M)
                confidences[row, measured] = model.confidences(features[measured])
            chosen[measured] = confidences[0, measured] < below
        adaptive = np.where(chosen, self.after, self.before)
        drawn = np.random.default_rng(seed).random(len(parts)) < confidences[1]
        errors = (
            calibration_error(confidences[0], self.before),
            calibration_error(confidences[1], self.after),
            calibration_error(confidences[1], drawn),
            calibration_error(np.where(chosen, confidences[1], confidences[0]), adaptive),
        )
        squares = [np.square(confidences[row] - self.after).mean() for row in (2, 1)]
        recalls = [each.mean() for each in (self.before, self.after, adaptive, chosen)]
        return tuple(100 * float(each) for each in (*recalls, *errors, *squares))


def matched(encoder: Encoder, database: Images, queries: Images, features: list[LocalFeatures]) -> Pairs:
    """Search the images for every query and match the first candidates."""
    descriptors = [extract(each.folder, encoder) for each in (database, queries)]
    found = nearest_neighbors([descriptors[0]], descriptors[1], TOP)
    images_m, queries_m = positions_m(database.catalogue, queries.catalogue)
    start = time.process_time()
    reranked = rerank(
        SiftMatcher(),
        lambda row: read_image(queries.catalogue.path(row)),
        Candidates(lambda row: features[row]),
        found.rows,
        top=TOP,
    )
    milliseconds = 1000 * (time.process_time() - start) / reranked.num_pairs
    first_only = np.argsort(np.arange(TOP) != reranked.order[:, :1], axis=1, kind="stable")
    nearest = Neighbors(*(np.take_along_axis(each, first_only, axis=1) for each in (found.rows, found.distances)))
    before, after = (
        np.linalg.norm(images_m[each.rows[:, 0]] - queries_m, axis=1) <= RADIUS_M for each in (found, nearest)
    )
    own, others = (confidence_features(each.distances, images_m[each.rows], RADIUS_M) for each in (found, nearest))
    ranked_m = images_m[np.take_along_axis(found.rows, reranked.order, axis=1)]
    verified = verified_features(others, np.maximum(reranked.inliers, 0), ranked_m, RADIUS_M)
    return Pairs(before, after, own, verified, milliseconds)


if __name__ == "__main__":
    main()
