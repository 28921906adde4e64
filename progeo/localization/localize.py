"""Localize photos with a place index, or find the places that match a sentence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.search import Neighbors
from progeo.features.batches import extract_rows
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import WorkOptions
from progeo.features.store import can_be_compared
from progeo.localization.place_index import PlaceIndex
from progeo.models.backbones.clip_configurations import HUB, parse_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import EncoderSpec
from progeo.models.text_towers.tokenizers import configuration_with_tokenizer, load_tokenizer
from progeo.models.text_towers.tower import tower_with
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import map_link
from progeo.places.folders import utf8_paths
from progeo.places.geographic import cell_corners
from progeo.places.paths import find_paths
from progeo.printable import printable


@dataclass(frozen=True)
class Match:
    """An image of the index, or a class of an index of classes, that matches a query."""

    path: str
    """Path of the image, or name of the class."""
    latitude: float | None
    """Degrees; None if only UTM is known."""
    longitude: float | None
    east_m: float | None
    """UTM meters; None if the position is unknown."""
    north_m: float | None
    distance: float
    """Euclidean distance between descriptors, or to the vector of a class."""
    probability: float | None = None
    """Probability of the class; None for images, and for a sentence."""
    corners: tuple[tuple[float, float], ...] | None = None
    """Longitude and latitude of the corners of the class's cell, counterclockwise from the south-west; None for images,
    and if they are unknown."""

    @property
    def position(self) -> str:
        """The position as text: degrees, or UTM if only that is known."""
        if self.east_m is None:
            return "no known position"
        if self.latitude is None:
            return f"UTM {self.east_m:.1f} east, {self.north_m:.1f} north"
        return f"{self.latitude:.5f}, {self.longitude:.5f}"

    @property
    def map_link(self) -> str:
        """URL of a street map of the position; empty if its degrees are unknown."""
        if self.latitude is None or self.longitude is None:
            return ""
        return map_link(self.latitude, self.longitude)


@dataclass(frozen=True)
class Localization:
    """Result of a query. Its estimated position is that of the first match."""

    query: str
    """Path of the query photo, or the query sentence."""
    confidence: float | None = None
    """Probability that the query was taken within `radius_m` of the first match; None if the index is not
    calibrated."""
    radius_m: float | None = None
    known: bool | None = None
    """Whether the confidence reaches the threshold; None without a confidence."""
    matches: tuple[Match, ...] = ()
    """The nearest images or classes, best first."""
    error: str = ""
    """Why there are no matches; empty if there are."""

    def __str__(self) -> str:
        """The position with its confidence, a link to its map, then a line for each match; or the error alone."""
        if self.error:
            return self.error
        confidence = ""
        if self.confidence is not None:
            confidence = f", within {self.radius_m:g} m with probability {self.confidence:.2f}"
        unknown = "unknown, at best " if self.known is False else ""
        lines = [f"{self.query}: {unknown}{self.matches[0].position}{confidence}"]
        if link := self.matches[0].map_link:
            lines.append(f"       {link}")
        for rank, match in enumerate(self.matches, 1):
            measure = f"{match.distance:.3f}" if match.probability is None else f"{100 * match.probability:5.1f} %"
            lines.append(f"{rank:5}  {measure}  {match.position}  {match.path}")
        return "\n".join(lines)


def find_photos(paths: Iterable[Path]) -> Catalogue:
    """List photos by path, given as files and as folders, which are searched recursively and sorted by name."""
    names = []
    for path in paths:
        if path.is_dir():
            names += [str(path / name) for batch in find_paths(path).batches for name in batch.to_pylist()]
        else:
            names.append(str(path))
    return Catalogue(Path(), pa.table({"path": utf8_paths(names)}))


def localize_photos(
    index: PlaceIndex,
    photos: Catalogue,
    *,
    accelerator: Accelerator,
    top: int = 5,
    threshold: float = 0.5,
    work: WorkOptions,
) -> list[Localization]:
    """Localize each photo.

    Args:
        photos: result of `find_photos`.
        top: number of matches of each photo.
        threshold: minimum confidence of a known position, 0 to 1.

    Raises:
        ValueError: no photo can be read.
    """
    found = [_extract_photos(extractor, photos, work) for extractor in index.query_extractors(accelerator)]
    errors = {row: error for _, errors_of_one in found for row, error in errors_of_one.items()}
    if len(errors) == len(photos):
        raise ValueError(next(iter(errors.values())))
    neighbors = index.search(*(descriptors for descriptors, _ in found), min_count=top)
    calibration = index.metadata.calibration
    return _localizations(
        index,
        photos.table["path"].to_pylist(),
        neighbors,
        top=top,
        confidences=index.confidences(neighbors),
        probabilities=index.probabilities(neighbors),
        radius_m=None if calibration is None else calibration.radius_m,
        threshold=threshold,
        errors=errors,
    )


def localize_text(index: PlaceIndex, text: str, *, top: int = 5) -> Localization:
    """Find the images that match a sentence; the result has no confidence, which is calibrated on photos only.

    Raises:
        ValueError: see `text_descriptor`.
    """
    neighbors = index.search(text_descriptor(index.encoder.spec, text), min_count=top)
    (result,) = _localizations(index, [text], neighbors, top=top, confidences=np.full(1, np.nan))
    return result


@torch.inference_mode()
def text_descriptor(spec: EncoderSpec, text: str) -> np.ndarray:
    """Encode a sentence in the descriptor space of an encoder, with unit length, float32 (1, D).

    Raises:
        ValueError: the encoder does not share CLIP's text space, or texts of its CLIP cannot be read right.
    """
    if spec.text_weights is None or not spec.normalized:
        raise ValueError(
            f"The descriptors of this encoder ({spec.architecture}, aggregation {spec.aggregation}) cannot be compared "
            f"with texts: that needs L2-normalized descriptors in CLIP's own space, such as those of a ViT of CLIP."
        )
    is_known = spec.text_weights in open_clip.list_pretrained_tags_by_model(spec.architecture)
    if not (is_known or spec.text_weights.startswith(HUB) or Path(spec.text_weights).is_absolute()):
        raise ValueError(
            f"`text` cannot be encoded: the encoder names the weights {printable(spec.text_weights)}, which are no tag "
            f"of {spec.architecture}."
        )
    if "/" in spec.text_weights:  # a file or an address, which may be a stranger's choice
        LOGGER.info("texts are encoded with the weights %s, as the encoder says", spec.text_weights)
    try:
        recorded = None if spec.configuration is None else parse_configuration(spec.configuration, "the encoder")
        configuration = configuration_with_tokenizer(recorded, spec.architecture, spec.text_weights)
        tokenizer = load_tokenizer(configuration)
        clip = load_clip(spec.architecture, spec.text_weights, configuration=configuration)
        tower = tower_with(clip, tokenizer)
    except ValueError as error:
        raise ValueError(f"`text` cannot be encoded as texts of {spec.architecture} are: {error}") from None
    if (num_tokens := tokenizer.num_tokens(text)) > tokenizer.context_length:
        LOGGER.warning("the text has %d tokens; only the first %d are read", num_tokens, tokenizer.context_length)
    return F.normalize(tower.encode([text]), dim=1).numpy()


def _extract_photos(
    extractor: FeatureExtractor, photos: Catalogue, work: WorkOptions
) -> tuple[np.ndarray, dict[int, str]]:
    """Extract descriptors (Q, D), zeros where there is none, and why not, by row."""
    rows = range(len(photos))
    descriptors, errors = extract_rows(
        extractor.extract,
        extractor.images(photos),
        rows,
        extractor.batches(photos, rows, work.batch_size),
        width=extractor.width,
        num_workers=work.num_workers,
        what="photos",
    )
    for row in np.flatnonzero(~can_be_compared(descriptors)).tolist():
        reason = "is not finite, or too large: with `mixed_precision` fp16, try bf16"
        errors[row] = f"The descriptor of {photos.path(row)} {reason}."
        descriptors[row] = 0
    return descriptors, errors


def _localizations(
    index: PlaceIndex,
    queries: Sequence[str],
    neighbors: Neighbors,
    *,
    top: int,
    confidences: np.ndarray,
    probabilities: np.ndarray | None = None,
    radius_m: float | None = None,
    threshold: float = 0.0,
    errors: Mapping[int, str] | None = None,
) -> list[Localization]:
    """Convert the neighbors of Q queries to results; `errors` says by row why a query has none."""
    results = []
    for row, query in enumerate(queries):
        if errors and row in errors:
            results.append(Localization(query, error=errors[row]))
            continue
        confidence = None if np.isnan(confidences[row]) else float(confidences[row])
        known = None if confidence is None else confidence >= threshold
        shares = None if probabilities is None else probabilities[row, :top]
        matches = _matches(index, neighbors.rows[row, :top], neighbors.distances[row, :top], shares)
        error = "" if matches else f"No match was found for {query}."
        results.append(Localization(query, confidence, radius_m, known, matches, error))
    return results


def _matches(
    index: PlaceIndex, rows: np.ndarray, distances: np.ndarray, probabilities: np.ndarray | None
) -> tuple[Match, ...]:
    found = index.catalogue.take(rows[rows >= 0])
    images = found.table.to_pylist()
    corners: list[Any] = [None] * len(images)
    if index.metadata.holds_classes:
        degrees = cell_corners(found, side_m=index.metadata.cell_side_m)
        corners = [tuple(map(tuple, cell)) if np.isfinite(cell).all() else None for cell in degrees.tolist()]
    shares = [None] * len(images) if probabilities is None else probabilities.tolist()
    return tuple(
        Match(
            path=image["path"],
            latitude=_known(image["latitude"]),
            longitude=_known(image["longitude"]),
            east_m=_known(image["east"]),
            north_m=_known(image["north"]),
            distance=distance,
            probability=share,
            corners=cell,
        )
        for image, distance, share, cell in zip(images, distances.tolist(), shares, corners, strict=False)
    )


def _known(coordinate: float) -> float | None:
    return None if np.isnan(coordinate) else coordinate
