"""A place index: a folder of images with known positions and an encoder, for localizing other photos.

The folder holds the encoder, parts with the images and their descriptors, and `index.json`, which names all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path

import numpy as np
import pyarrow as pa
from accelerate import Accelerator

from progeo.data.photos import Photo
from progeo.engine.accelerator import Processor, choose_processor
from progeo.engine.log import LOGGER
from progeo.engine.options import Precision
from progeo.evaluation.cell_index import Cells
from progeo.evaluation.search import Neighbors
from progeo.export.classifier import check_fits_encoder, load_classifier
from progeo.export.weights import load_encoder
from progeo.features.descriptors import descriptor_extractor, is_metadata_of
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.localization.confidence import (
    ClassCalibration,
    class_confidence_features,
    confidence_features,
    score_probabilities,
)
from progeo.localization.engines.store import open_engine_store
from progeo.localization.extraction import check_at_least, find_photos
from progeo.localization.index_folder import ENCODER_FOLDER, with_current
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.localizations import Localization
from progeo.localization.localize import localize_photos
from progeo.localization.part_files import OpenedPart, known_rows, open_parts
from progeo.localization.removed_rows import open_removed
from progeo.localization.restriction import Restriction
from progeo.localization.stored_files import check_file
from progeo.localization.stores import DescriptorStore, LocalStore
from progeo.localization.verifying import Verifier, build_verifier
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import degrees_of, positions_m
from progeo.places.nearby import HeadingRange, Near, heading_of, near_of, of_each
from progeo.verification.feature_file import JoinedFeatures

_NUM_MATCHES = 20
"""Number of matches of a query that its confidence is computed from."""
_NUM_CLASSES = 1000
"""Number of best classes that share the probability of a query; others count as impossible."""


@dataclass(frozen=True)
class PlaceIndex:
    """An opened place index; its images are read only when it is searched."""

    folder: Path
    metadata: IndexMetadata
    encoder: Encoder
    catalogue: Catalogue
    """Images by absolute path, or classes by name, with latitude and longitude, NaN where they are unknown; also those
    that are removed, see `removed`."""
    store: DescriptorStore
    """The descriptors of the rows of the catalogue."""
    removed: np.ndarray
    """Rows that are not found, sorted, int64 (r,)."""
    cells: Cells | None
    """The cells that are its lists; None if its lists are no cells."""
    processor: Accelerator | Processor
    """Where the encoder runs, and its precision."""
    features: JoinedFeatures | None = None
    """Local features of the images, by row; None if they are extracted from the images when needed."""
    parts: Sequence[OpenedPart] = ()
    """The parts of its folder."""

    def localize(
        self,
        photos: Photo | Iterable[Photo],
        *,
        top: int = 5,
        threshold: float = 0.5,
        near: Near | Sequence[float] | Sequence[Near | Sequence[float]] | None = None,
        heading: HeadingRange | Sequence[float] | Sequence[HeadingRange | Sequence[float]] | None = None,
        verify: bool | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        shows_progress: bool = False,
    ) -> list[Localization]:
        """Localize one or several photos; several threads may do so at the same time.

        Args:
            photos: see `progeo.data.photos.Photo`; a folder stands for the photos in it. A batch of pixels is several
                photos: an array uint8 (B, H, W, 3) or a tensor uint8 (B, 3, H, W).
            top: number of matches of each photo.
            threshold: minimum confidence of a known position, 0 to 1.
            near: latitude and longitude in degrees and a radius in meters: only images within it can match. A sequence
                has one for each photo. Without a confidence, which is calibrated on searches of the complete index.
            heading: degrees clockwise from north and a tolerance in degrees: only images that look there can match, or
                whose heading is unknown. A sequence has one for each photo. Without a confidence.
            verify: whether the first matches are matched with the photo and ranked by inliers; None does so where the
                confidence is below the threshold that `progeo index calibrate --verify` found.
            batch_size: number of photos that the encoder gets at once.
            num_workers: number of processes that decode photos; 0 decodes them in this one.
            shows_progress: whether progress is logged.

        Returns:
            A localization for each photo, in their order; that of one that cannot be read, or without an image within
            its own `near` and `heading`, has an `error`.

        Raises:
            ValueError: something is no photo, none of the photos can be read, an option is out of range, no image lies
                within a `near` and `heading` that are one for all photos, no position or heading is known in the index,
                or the matcher cannot be used.
        """
        check_at_least(1, top=top, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise ValueError(f"`threshold` must be a probability from 0 to 1, got {threshold!r}. Use for example 0.5.")
        several = find_photos(photos)
        return localize_photos(
            self,
            several,
            top=top,
            threshold=threshold,
            among=self._among(near, heading, len(several)),
            verify=verify,
            batch_size=batch_size,
            num_workers=num_workers,
            shows_progress=shows_progress,
        )

    @cached_property
    def verifier(self) -> Verifier:
        """Matches photos with the images, as calibrated, or else by SIFT."""
        verification = self.metadata.verification
        if verification is not None:
            try:
                return build_verifier(self, verification.matcher, verification.top)
            except ValueError as error:
                raise ValueError(f"{self.folder} cannot be verified as its index.json says: {error}") from None
        if self.metadata.calibration is not None:
            LOGGER.warning(
                "%s was calibrated without verification, so that verified photos have no confidence: run `progeo index "
                "calibrate --verify`",
                self.folder,
            )
        return build_verifier(self)

    @cached_property
    def images(self) -> Catalogue:
        """The images or classes that a search can find."""
        return self.catalogue.without(self.removed)

    @cached_property
    def class_centers_m(self) -> np.ndarray:
        """East and north of all class centers in meters, (C, 2)."""
        return positions_m(self.catalogue)[0]

    def extractor(self, preprocessing: Preprocessing) -> FeatureExtractor:
        """Build a feature extractor with the encoder, image size and orientation of the index."""
        images = ImageOptions(image_size=self.metadata.image_size, orientation=self.metadata.orientation)
        return descriptor_extractor(self.encoder, images, self.processor, preprocessing=preprocessing)

    def _among(self, near: object, heading: object, count: int) -> Restriction | list[Restriction] | None:
        """Return what restricts the search of each of `count` photos, or of all of them; see `localize`."""
        circle = of_each(near, count, near_of, name="near")
        directions = of_each(heading, count, heading_of, name="heading")
        if isinstance(circle, list) or isinstance(directions, list):
            circles = circle if isinstance(circle, list) else [circle] * count
            ranges = directions if isinstance(directions, list) else [directions] * count
            return [Restriction(*each) for each in zip(circles, ranges, strict=True)]
        return None if circle is None and directions is None else Restriction(circle, directions)

    @cached_property
    def query_extractors(self) -> list[FeatureExtractor]:
        """The feature extractors of queries, one for each argument of `search`."""
        extractors = [self.extractor(self.metadata.query_preprocessing)]
        if self.cells is not None and self.cells.encoder is not None:
            images = ImageOptions(orientation=self.metadata.orientation)
            preprocessing = self.metadata.query_preprocessing
            extractors.append(
                descriptor_extractor(self.cells.encoder, images, self.processor, preprocessing=preprocessing)
            )
        return extractors

    def search(
        self,
        descriptors: np.ndarray,
        cell_descriptors: np.ndarray | None = None,
        *,
        min_count: int = 1,
        probes: int | None = None,
        among: Restriction | Sequence[Restriction] | None = None,
    ) -> Neighbors:
        """Search for Q queries; returns at least `min_count` neighbors, and as many as confidence requires.

        Args:
            descriptors: (Q, D).
            cell_descriptors: those of the other network that ranks the cells, (Q, E); None takes the class means of
                the encoder of the index instead.
            probes: number of inverted lists to visit; None takes that of the index.
            among: what the neighbors of all queries, or those of each, have in common; None for nothing.

        Raises:
            ValueError: no row of the index has what is common to all queries.
        """
        if self.metadata.holds_classes:
            descriptors = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
        neighbors = self.store.search(
            descriptors,
            max(min_count, _NUM_CLASSES if self.metadata.holds_classes else _NUM_MATCHES),
            probes=probes or self.metadata.probes,
            refine=self.metadata.refine,
            among=among,
            cell_queries=cell_descriptors,
        )
        if isinstance(among, Restriction) and (neighbors.rows < 0).all():
            raise self._nothing_there(among)
        return neighbors

    def _nothing_there(self, among: Restriction) -> ValueError:
        where, larger = [], []
        if (near := among.near) is not None:
            where.append(f"within {near.radius_m:.10g} m of {near.latitude:.10g}, {near.longitude:.10g}")
            larger.append("radius")
        if among.heading is not None:
            where.append(f"with a heading of {among.heading.heading_deg:g} degrees")
            larger.append("tolerance")
        return ValueError(
            f"None of the {self.metadata.rows} of {self.folder} lies {' and '.join(where)}: take a larger "
            f"{' or '.join(larger)}."
        )

    def class_scores(self, neighbors: Neighbors) -> np.ndarray:
        """Compute the scaled cosines of Q queries with their classes, (Q, K); minus infinity where there is none."""
        cosines = 1 - np.square(neighbors.distances, dtype=np.float64) / 2  # of vectors of unit length
        return np.where(neighbors.rows < 0, -np.inf, self.metadata.scale * cosines)

    def probabilities(self, neighbors: Neighbors) -> np.ndarray | None:
        """Return the probability of each class of an index of classes, (Q, K); None for an index of images."""
        if not self.metadata.holds_classes:
            return None
        calibration = self.metadata.calibration
        assert calibration is None or isinstance(calibration, ClassCalibration)
        return score_probabilities(self.class_scores(neighbors), calibration)

    def confidence_features(self, neighbors: Neighbors, radius_m: float) -> np.ndarray:
        """Compute the confidence features of each of Q queries, (Q, 2); NaN where the top match has no position.

        For an index of classes they are (Q, 2, K), see `class_confidence_features`.
        """
        if self.metadata.holds_classes:
            return class_confidence_features(
                self.class_scores(neighbors), self.class_centers_m[neighbors.rows], radius_m
            )
        rows, distances = neighbors.rows[:, :_NUM_MATCHES], neighbors.distances[:, :_NUM_MATCHES]
        # The index may return fewer than K matches (-1). Pad with the top match's position and the last valid distance,
        # so that padding never counts as another place.
        last = (rows >= 0).sum(axis=1, keepdims=True) - 1
        distances = np.where(rows < 0, np.take_along_axis(distances, np.maximum(last, 0), axis=1), distances)
        rows = np.where(rows < 0, rows[:, :1], rows)
        (matches_m,) = positions_m(self.catalogue.take(np.maximum(rows, 0).ravel()))
        matches_m = matches_m.reshape(*rows.shape, 2)
        has_result = (rows[:, :1] >= 0) & np.isfinite(matches_m[:, 0]).all(axis=1, keepdims=True)
        return np.where(has_result, confidence_features(distances, matches_m, radius_m), np.nan)

    def confidences(self, neighbors: Neighbors) -> np.ndarray:
        """Return probabilities (Q,) that the first matches are correct; NaN if the index is not calibrated."""
        calibration = self.metadata.calibration
        if calibration is None:
            return np.full(len(neighbors.rows), np.nan)
        return calibration.confidences(self.confidence_features(neighbors, calibration.radius_m))


def open_index(folder: str | Path, *, device: str | None = None, mixed_precision: Precision = "no") -> PlaceIndex:
    """Open a place index to localize photos with: it is memory-mapped, and the encoder is loaded once.

    Args:
        device: where the encoder runs, such as `cpu` or `cuda:1`; None takes the GPU if there is one, else the CPU.
        mixed_precision: precision of the encoder.

    Raises:
        FileNotFoundError, ValueError: see `open_place_index`; there is no such device, or fp16 without a GPU.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"`folder` must be the path of a place index, got {folder!r}.")
    index = open_place_index(Path(folder), choose_processor(device, mixed_precision))
    _ = index.query_extractors  # which moves the encoder to the device now, before threads share it
    return index


def open_place_index(folder: Path, processor: Accelerator | Processor | None = None) -> PlaceIndex:
    """Open a place index, memory-mapped.

    Args:
        processor: where its encoder runs; None as `choose_processor` chooses.

    Raises:
        FileNotFoundError: there is no index in the folder, or one of its files is missing.
        ValueError: the index is corrupt, or its encoder is not the one that it was built with.
    """
    return with_current(folder, lambda metadata: _opened(folder, metadata, processor or choose_processor()))


def rows_in_index(index: PlaceIndex, images: Catalogue) -> np.ndarray:
    """Return the rows of those images, as `index_images` returns them, whose paths an index holds already."""
    return np.flatnonzero(known_rows(index.parts, index.removed, images.table["path"]))


def index_images(catalogue: Catalogue) -> Catalogue:
    """Convert a catalogue for an index: absolute paths, with latitude and longitude, NaN where they are unknown."""
    return absolute_images(located_images(catalogue))


def located_images(catalogue: Catalogue) -> Catalogue:
    """Add latitude and longitude to a catalogue, NaN where they are unknown; warn if UTM positions have none."""
    degrees = np.full((2, len(catalogue)), np.nan)
    known = has_position(catalogue)
    degrees[:, known] = degrees_of(catalogue if known.all() else catalogue.take(np.flatnonzero(known)))
    unknown = np.flatnonzero(known & np.isnan(degrees[0]) & (catalogue.zone > 0))
    if len(unknown):
        LOGGER.warning(
            "latitude and longitude of %d of %d images are unknown, the first is %s: it has no UTM band letter, which "
            "tells the hemisphere, or one that contradicts the northing",
            len(unknown),
            len(catalogue),
            catalogue.name(int(unknown[0])),
        )
    columns = {name: catalogue.table[name] for name in ("path", "east", "north", "zone", "heading")}
    return Catalogue(catalogue.folder, pa.table({**columns, "latitude": degrees[0], "longitude": degrees[1]}))


def absolute_images(images: Catalogue) -> Catalogue:
    """Make the paths of images, as `located_images` returns them, absolute."""
    absolute = images.full_paths()
    return Catalogue(images.folder, images.table.set_column(0, "path", absolute).combine_chunks())


def has_position(catalogue: Catalogue) -> np.ndarray:
    """Return which images have a known position, bool (N,)."""
    return np.isfinite(catalogue.east) & np.isfinite(catalogue.north)


def _opened(folder: Path, metadata: IndexMetadata, processor: Accelerator | Processor) -> PlaceIndex:
    source = folder / ENCODER_FOLDER
    for name, stored in metadata.files.items():
        check_file(folder / name, stored, folder)
    parts = open_parts(folder, metadata)
    encoder = load_encoder(source)
    if not is_metadata_of(metadata.encoder, encoder):
        raise ValueError(
            f"{folder} was not built with the encoder in {source}, as its index.json says: put that one back, or build "
            f"it anew."
        )
    held = [] if metadata.engine is not None else parts
    if len(widths := {encoder.descriptor_dim, *(part.descriptors.shape[1] for part in held)}) > 1:
        raise ValueError(
            f"The files of {folder} do not belong together: descriptors of {', '.join(map(str, sorted(widths)))} "
            f"dimensions. Build the index anew."
        )
    cells = _open_cells(folder / metadata.classifier, metadata, encoder, parts) if metadata.classifier else None
    features = JoinedFeatures([part.features for part in parts if part.features is not None])
    removed = open_removed(folder, metadata)
    table = pa.concat_tables([part.images.table for part in parts])
    store: DescriptorStore = LocalStore(parts, removed, folder, cells)
    if metadata.engine is not None:
        store = open_engine_store(folder, metadata, removed)
    return PlaceIndex(
        folder,
        metadata,
        encoder,
        Catalogue(folder, table),
        store,
        removed,
        cells,
        processor,
        features if metadata.stores_features else None,
        parts,
    )


def _open_cells(folder: Path, metadata: IndexMetadata, encoder: Encoder, parts: Sequence[OpenedPart]) -> Cells:
    other = None if metadata.classifier == ENCODER_FOLDER else load_encoder(folder)
    classifier = load_classifier(folder)
    check_fits_encoder(classifier, other or encoder, folder)
    num_lists = {getattr(part.index, "nlist", 0) for part in parts}
    if num_lists != {len(classifier)} or classifier.fingerprint != metadata.partition:
        raise ValueError(
            f"The classifier in {folder} has other classes than the lists of {metadata.trained_file}: put back the one "
            f"that the index was built with, or build the index anew."
        )
    return Cells(classifier, other)
