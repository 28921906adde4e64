"""Localize photos, or find the places that match a sentence."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from accelerate import Accelerator

from progeo.config.evaluation import LocalizeSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.search import Neighbors
from progeo.features.batches import extract_rows
from progeo.files import replacing, write_json
from progeo.localization.place_index import PlaceIndex, open_place_index
from progeo.models.backbones.open_clip import load_clip
from progeo.models.encoder import EncoderSpec
from progeo.places.catalogue import Catalogue
from progeo.places.folders import utf8_paths
from progeo.places.paths import find_paths


@dataclass(frozen=True)
class Match:
    """An image of the index that matches a query."""

    path: str
    latitude: float | None
    """Degrees; None if only UTM is known."""
    longitude: float | None
    east_m: float | None
    """UTM meters; None if the position is unknown."""
    north_m: float | None
    distance: float
    """Euclidean distance between descriptors."""


@dataclass(frozen=True)
class Localization:
    """Result of a query. Its estimated position is that of the first match."""

    asked: str
    """Path of the query photo, or the query sentence."""
    confidence: float | None
    """Probability that the query was taken within `radius_m` of the first match; None if the index is not
    calibrated."""
    radius_m: float | None
    known: bool | None
    """Whether the confidence reaches the threshold; None without a confidence."""
    matches: tuple[Match, ...]
    """The nearest images, best first."""
    error: str = ""
    """Why there are no matches; empty if there are."""


def localize(settings: LocalizeSettings) -> list[Localization]:
    """Localize photos or a sentence, print the results and write them to a file.

    Raises:
        ValueError: not exactly one of photos and a sentence is given, no photo can be read, or the encoder does not
            support text.
    """
    start_log(None)
    if bool(settings.photos) == (settings.text is not None):
        raise ValueError("Give photos to localize, or --text with a sentence to search by.")
    if settings.out is not None and settings.out.suffix not in _WRITERS:
        raise ValueError(f"--out must end in {', '.join(_WRITERS)}, got {settings.out.name}.")
    index = open_place_index(settings.index)
    if settings.text is not None:
        answers = _located(index, [settings.text], text_descriptor(index.encoder.spec, settings.text), {}, settings)
    else:
        accelerator = start_accelerator(settings.mixed_precision)
        photos = _photos(settings.photos)
        descriptors, unreadable = _describe(index, photos, settings, accelerator)
        answers = _located(index, photos.table["path"].to_pylist(), descriptors, unreadable, settings)
    if settings.out is not None:
        _WRITERS[settings.out.suffix](settings.out, answers)
    for answer in answers:
        print("\n".join(_lines(answer)))
    if settings.out is not None:
        LOGGER.info("answers: %s", settings.out)
    return answers


@torch.inference_mode()
def text_descriptor(spec: EncoderSpec, text: str) -> np.ndarray:
    """Encode a sentence in the descriptor space of an encoder, with unit length, float32 (1, D).

    Raises:
        ValueError: the encoder does not share CLIP's text space, or its CLIP has no tokenizer.
    """
    if spec.text_weights is None or not spec.normalized:
        raise ValueError(
            f"The descriptors of this encoder ({spec.architecture}, pooling {spec.pooling}) cannot be compared with "
            f"texts: that takes what a CLIP with known weights pooled itself, such as a ViT, with length 1."
        )
    try:
        tokenizer = open_clip.get_tokenizer(spec.architecture)
    except Exception as error:  # an error of another library, or of a download
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--text needs the tokenizer of {spec.architecture}, which cannot be made: {reason}."
        ) from None
    clip = load_clip(spec.architecture, spec.text_weights)
    return clip.encode_text(tokenizer([text]), normalize=True).numpy()


def _photos(paths: tuple[Path, ...]) -> Catalogue:
    """List photos by path, in folders sorted by name."""
    names = []
    for path in paths:
        if path.is_dir():
            names += [str(path / name) for batch in find_paths(path).batches for name in batch.to_pylist()]
        else:
            names.append(str(path))
    return Catalogue(Path(), pa.table({"path": utf8_paths(names)}))


def _describe(
    index: PlaceIndex, photos: Catalogue, settings: LocalizeSettings, accelerator: Accelerator
) -> tuple[np.ndarray, dict[int, str]]:
    """Extract descriptors (Q, D); also returns why photos could not be read, by row."""
    extractor = index.extractor(index.about.query_preprocessing, accelerator)
    rows = range(len(photos))
    descriptors, unreadable = extract_rows(
        extractor.extract,
        extractor.images(photos),
        rows,
        extractor.batches(photos, rows, settings.batch_size),
        width=extractor.width,
        num_workers=settings.num_workers,
        what="photos",
    )
    for row in np.flatnonzero(~np.isfinite(descriptors).all(axis=1)).tolist():
        unreadable[row] = f"The descriptor of {photos.path(row)} is not finite: with --mixed_precision fp16, try bf16."
        descriptors[row] = 0
    if len(unreadable) == len(photos):
        raise ValueError(next(iter(unreadable.values())))
    return descriptors, unreadable


def _located(
    index: PlaceIndex,
    asked: list[str],
    descriptors: np.ndarray,
    unreadable: Mapping[int, str],
    settings: LocalizeSettings,
) -> list[Localization]:
    found = index.search(descriptors, least=settings.top)
    is_text = settings.text is not None  # confidence is calibrated on photos only
    confidences = np.full(len(asked), np.nan) if is_text else index.confidences(found)
    calibration = index.about.calibration
    radius_m = None if is_text or calibration is None else calibration.radius_m
    answers = []
    for row, name in enumerate(asked):
        if row in unreadable:
            answers.append(Localization(name, None, None, None, (), unreadable[row]))
            continue
        confidence = None if np.isnan(confidences[row]) else float(confidences[row])
        known = None if confidence is None else confidence >= settings.threshold
        matches = _matches(index, found, row, settings.top)
        error = "" if matches else f"Nothing was found for {name}."
        answers.append(Localization(name, confidence, radius_m, known, matches, error))
    return answers


def _matches(index: PlaceIndex, found: Neighbors, row: int, top: int) -> tuple[Match, ...]:
    rows = found.rows[row, :top]
    table = index.catalogue.table.take(rows[rows >= 0])
    matches = []
    for image, distance in zip(table.to_pylist(), found.distances[row].tolist(), strict=False):
        places = (image[name] for name in ("latitude", "longitude", "east", "north"))
        matches.append(Match(image["path"], *(None if np.isnan(place) else place for place in places), distance))
    return tuple(matches)


def _place(match: Match) -> str:
    if match.east_m is None:
        return "no known place"
    if match.latitude is None:
        return f"UTM {match.east_m:.1f} east, {match.north_m:.1f} north"
    return f"{match.latitude:.5f}, {match.longitude:.5f}"


def _lines(answer: Localization) -> list[str]:
    if answer.error:
        return [answer.error]
    sure = ""
    if answer.confidence is not None:
        sure = f", within {answer.radius_m:g} m with probability {answer.confidence:.2f}"
    first = f"{answer.asked}: {'unknown, at best ' if answer.known is False else ''}{_place(answer.matches[0])}{sure}"
    ranked = enumerate(answer.matches, 1)
    return [first, *(f"{rank:5}  {match.distance:.3f}  {_place(match)}  {match.path}" for rank, match in ranked)]


def _flat(answer: Localization) -> dict[str, Any]:
    """Flatten a result to one row with its first match."""
    match = asdict(answer.matches[0]) if answer.matches else dict.fromkeys(Match.__dataclass_fields__)
    return {
        "photo": answer.asked,
        "latitude": match.pop("latitude"),
        "longitude": match.pop("longitude"),
        "confidence": answer.confidence,
        "known": answer.known,
        "match": match.pop("path"),
        **match,
        "error": answer.error,
    }


def _write_csv(path: Path, answers: list[Localization]) -> None:
    rows = [_flat(answer) for answer in answers]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_geojson(path: Path, answers: list[Localization]) -> None:
    features = []
    for answer in answers:
        properties = _flat(answer)
        place = [properties.pop("longitude"), properties.pop("latitude")]
        geometry = None if None in place else {"type": "Point", "coordinates": place}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    write_json(path, {"type": "FeatureCollection", "features": features})


def _write_json(path: Path, answers: list[Localization]) -> None:
    write_json(path, [asdict(answer) for answer in answers])


_WRITERS = {".csv": _write_csv, ".geojson": _write_geojson, ".json": _write_json}
