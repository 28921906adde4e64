"""How long the extraction of features takes, measured on some images."""

import time
from itertools import islice

from accelerate import Accelerator

from progeo.engine.dry_run import Phase
from progeo.features.batches import feature_batches
from progeo.features.cache import Cache
from progeo.features.extract import num_missing
from progeo.features.extractor import FeatureExtractor
from progeo.places.catalogue import Catalogue
from progeo.progress import Progress

_BATCHES, _LONGEST_S = 5, 20.0
"""Number of batches that are measured, and the time after which no further one is."""


def seconds_per_image(
    extractor: FeatureExtractor, catalogue: Catalogue, accelerator: Accelerator, *, batch_size: int, num_workers: int
) -> float:
    """Extract the features of the first images of a catalogue, and measure the time of each after the first batch.

    Several processes share the images, so that each image takes the less.
    """
    images = extractor.images(catalogue)
    batches = extractor.batches(images, range(min(len(catalogue), _BATCHES * batch_size)), batch_size)
    start = time.monotonic()
    ends, counts = [start], [0]
    what, total = f"some {extractor.what}", sum(map(len, batches))
    with Progress(what, total=total, hidden=not accelerator.is_main_process) as bar:
        found = feature_batches(
            extractor.extract,
            images,
            batches,
            width=extractor.width,
            num_workers=num_workers,
            bar=bar,
            filled_to=extractor.full_batch(catalogue, batch_size),
        )
        for batch in islice(found, _BATCHES):
            counts.append(len(batch.rows) + len(batch.unreadable))
            ends.append(time.monotonic())
            if ends[-1] - start > _LONGEST_S:
                break
    first = 1 if len(ends) > 2 else 0  # the first batch takes longer
    return (ends[-1] - ends[first]) / max(1, sum(counts[first + 1 :])) / accelerator.num_processes


def extraction_phase(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    cache: Cache,
    batch_size: int,
    num_workers: int,
) -> Phase:
    """Estimate the time of extracting the features that the cache does not hold.

    Raises:
        ValueError: the cached features were made from something else.
    """
    missing = num_missing(extractor, catalogue, accelerator, cache=cache, batch_size=batch_size)
    if not missing:
        return Phase(extractor.what, 0, "images", 0.0)
    seconds = seconds_per_image(extractor, catalogue, accelerator, batch_size=batch_size, num_workers=num_workers)
    return Phase(extractor.what, missing, "images", missing * seconds)
