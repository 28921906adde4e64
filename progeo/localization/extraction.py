"""Extract the descriptors of photos in memory or in files, without a catalogue or a cache."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np

from progeo.data.photos import Photo, listed_photos
from progeo.engine.accelerator import choose_processor
from progeo.engine.options import Precision
from progeo.export.weights import load_encoder
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.features.store import can_be_compared
from progeo.models.encoder import Encoder
from progeo.places.paths import find_paths


def extract(
    photos: Photo | Iterable[Photo],
    encoder: Encoder | str | Path,
    *,
    device: str | None = None,
    mixed_precision: Precision = "no",
    batch_size: int = 64,
    num_workers: int = 0,
) -> np.ndarray:
    """Extract the descriptors of one or several photos, float32 (N, D), in their order.

    Photos are rotated upright and resized to the encoder's image size, as in an evaluation.

    Args:
        photos: see `progeo.data.photos.Photo`; a folder stands for the photos in it.
        encoder: an encoder, or its name, see `load_encoder`.
        device: where the encoder runs, such as `cpu` or `cuda:1`; None takes the GPU if there is one, else the CPU.
        mixed_precision: precision of the encoder.
        batch_size: number of photos that the encoder gets at once.
        num_workers: number of processes that decode photos; 0 decodes them in this one.

    Raises:
        ValueError: something is no photo, one cannot be read, an option is out of range, or the encoder cannot be
            loaded or run.
        FileNotFoundError: there is no such encoder.
    """
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, num_workers=num_workers)
    several = find_photos(photos)
    if not isinstance(encoder, Encoder | str | Path):
        raise ValueError(f"`encoder` must be an encoder or the name of one, got {type(encoder).__name__}.")
    processor = choose_processor(device, mixed_precision)
    loaded = load_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    extractor = descriptor_extractor(loaded, ImageOptions(), processor)
    descriptors, errors = extract_photos(
        extractor, several, batch_size=batch_size, num_workers=num_workers, hidden=True
    )
    for error in errors.values():
        raise ValueError(error)
    return descriptors


def check_at_least(minimum: int, **numbers: object) -> None:
    """Check numbers that are given by name.

    Raises:
        ValueError: one is no integer, or less than `minimum`.
    """
    for name, number in numbers.items():
        if not isinstance(number, Integral) or int(number) < minimum:
            raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {number!r}.")


def find_photos(photos: Photo | Iterable[Photo]) -> list[Photo]:
    """List one or several photos; a folder stands for the photos in it, found recursively and sorted by name.

    Raises:
        ValueError: something is no photo.
    """
    found: list[Photo] = []
    for photo in listed_photos(photos):
        if isinstance(photo, str | Path) and Path(photo).is_dir():
            found += [Path(photo) / name for batch in find_paths(Path(photo)).batches for name in batch.to_pylist()]
        else:
            found.append(photo)
    return found


def extract_photos(
    extractor: FeatureExtractor, photos: Sequence[Photo], *, batch_size: int, num_workers: int, hidden: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """Extract descriptors (Q, D), zeros where there is none, and why not, by row; `hidden` shows no progress."""
    rows, images = range(len(photos)), extractor.photos(photos)
    batches = extractor.batches(images, rows, batch_size)
    descriptors, errors = extract_rows(
        extractor.extract,
        images,
        rows,
        batches,
        width=extractor.width,
        num_workers=min(num_workers, len(batches)) if len(batches) > 1 else 0,  # one batch is not decoded any sooner
        what="photos",
        hidden=hidden,
    )
    for row in np.flatnonzero(~can_be_compared(descriptors)).tolist():
        reason = "is not finite, or too large: with `mixed_precision` fp16, try bf16"
        errors[row] = f"The descriptor of {images.name(row)} {reason}."
        descriptors[row] = 0
    return descriptors, errors
