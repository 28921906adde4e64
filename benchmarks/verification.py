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
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from progeo.data.decode import read_image
from progeo.engine.accelerator import choose_processor
from progeo.evaluation.search import nearest_neighbors
from progeo.export.weights import load_encoder
from progeo.localization.adaptive import choose_photos, is_uncertain
from progeo.localization.confidence import (
    calibrate,
    calibration_error,
    confidences_beyond_chance,
    held_out_confidences,
)
from progeo.localization.extraction import extract
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.place_index import PlaceIndex, index_images
from progeo.localization.stores import LocalStore
from progeo.localization.verifying import build_verifier, extracted_features
from progeo.models.encoder import Encoder, build_encoder
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import positions_m
from progeo.verification.feature_file import FeatureFile, JoinedFeatures, open_feature_file, write_feature_file
from progeo.verification.rerank import NOT_MATCHED

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
    database, queries = (index_images(read_catalogue(options.folder / name)) for name in ("database", "queries"))
    with TemporaryDirectory() as folder:
        start = time.process_time()
        write_feature_file(file := Path(folder) / "features.arrow", extracted_features(database, "exif"))
        milliseconds = 1000 * (time.process_time() - start) / len(database)
        print_table(options.encoders, database, queries, open_feature_file(file), milliseconds)


def print_table(
    encoders: list[str], database: Catalogue, queries: Catalogue, features: FeatureFile, milliseconds: float
) -> None:
    """Print a line for every encoder.

    Args:
        features: local features of the database.
        milliseconds: CPU time of extracting those of an image.
    """
    kilobytes = sum(len(each.values or b"") for each in features.stored()) / len(features) / 1000
    print(f"{database.folder.parent}: {len(database)} images, {len(queries)} queries")
    print(f"local features: {milliseconds:.0f} ms of CPU and {kilobytes:.0f} kB an image")
    groups = ((" R@1, %: ", RECALLS), (" calibration error, points: ", ERRORS), (" squared error, points: ", SQUARES))
    print(f"{'':16}{''.join(f'{title:-^{WIDTH * len(columns)}}' for title, columns in groups)}{'CPU, ms':>{WIDTH}}")
    columns = (*RECALLS, *ERRORS, *SQUARES, "a pair")
    print(f"{'':16}{''.join(f'{column:>{WIDTH}}' for column in columns)}")
    for name in encoders:
        pairs = matched(load(name), database, queries, features)
        values = np.mean([pairs.measured(seed) for seed in range(NUM_PARTITIONS)], axis=0)
        numbers = [*values.tolist(), pairs.milliseconds]
        print(f"{Path(name).name[:15]:16}{''.join(f'{number:{WIDTH}.1f}' for number in numbers)}", flush=True)


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
    first_inliers: np.ndarray
    """Inliers of the first match after, int64 (Q,)."""
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
            chosen[measured] = is_uncertain(confidences[0, measured], below)
        confidences[1] = confidences_beyond_chance(confidences[1], confidences[0], self.first_inliers)
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


def matched(encoder: Encoder, database: Catalogue, queries: Catalogue, features: FeatureFile) -> Pairs:
    """Search the images for every query and match the first candidates."""
    index = index_of(encoder, database, features)
    descriptors = [extract(images.folder, encoder) for images in (database, queries)]
    found = nearest_neighbors([descriptors[0]], descriptors[1], TOP)
    start = time.process_time()
    verified = build_verifier(index, top=TOP).verified(
        lambda row: read_image(queries.path(row)), found, np.arange(len(queries)), num_kept=0
    )
    milliseconds = 1000 * (time.process_time() - start) / (verified.inliers != NOT_MATCHED).sum()
    images_m, queries_m = positions_m(database, queries)
    before, after = (
        np.linalg.norm(images_m[each.rows[:, 0]] - queries_m, axis=1) <= RADIUS_M
        for each in (found, verified.neighbors)
    )
    own = index.confidence_features(found, RADIUS_M)
    return Pairs(before, after, own, verified.features(index, RADIUS_M), verified.inliers[:, 0], milliseconds)


def index_of(encoder: Encoder, images: Catalogue, features: FeatureFile) -> PlaceIndex:
    """Stand in for a place index whose search is done already."""
    metadata = IndexMetadata(
        kind="Flat",
        probes=1,
        encoder={},
        image_size=(1, 1),
        database_preprocessing="hard_resize",
        query_preprocessing="hard_resize",
        parts=(),
        stores_features=True,
    )
    removed, processor = np.empty(0, np.int64), choose_processor()
    store = LocalStore([], removed, images.folder)
    return PlaceIndex(
        images.folder, metadata, encoder, images, store, removed, None, processor, JoinedFeatures([features])
    )


if __name__ == "__main__":
    main()
