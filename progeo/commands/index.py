"""Build a place index, add images to it, and calibrate its confidence."""

from pathlib import Path

from jsonargparse.typing import PositiveFloat, PositiveInt

from progeo.engine.options import Precision
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.models.options import Preprocessing


def build_index(
    encoder: str,
    *,
    folder: Path,
    out: Path,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
    query_preprocessing: Preprocessing = "hard_resize",
    faiss: str = "Flat",
    probes: PositiveInt = 16,
    mixed_precision: Precision = "no",
) -> Path:
    """Extract the descriptors of a folder of images and write a place index; returns its folder.

    Args:
        encoder: Folder of a run, or of an encoder.
        folder: Folder of images with known positions. An image whose name has no position is still retrieved, but as a
            match without a position.
        out: Output folder for the place index.
        images: Options of the images of the index.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        query_preprocessing: Preprocessing of the photos to localize. Takes the values of database_preprocessing.
        faiss: faiss factory string of the descriptor index. Flat is exact; IVF1024,Flat is faster to search;
            OPQ32,IVF1024,PQ32 is faster and smaller.
        probes: Number of inverted lists that a search visits (faiss nprobe). Only an IVF index uses it.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: the folder holds an index already, or the encoder has no weights.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.localization.building import build_place_index

    build_place_index(
        out,
        folder,
        encoder_name=encoder,
        accelerator=start_accelerator(mixed_precision),
        images=images,
        work=work,
        cache=cache,
        query_preprocessing=query_preprocessing,
        faiss=faiss,
        probes=probes,
    )
    return out


def add_to_index(
    index: Path, *, folder: Path, work: WorkOptions, cache: CacheOptions, mixed_precision: Precision = "no"
) -> Path:
    """Add the images of a folder to a place index; returns the folder of the index.

    Args:
        index: Folder of the place index.
        folder: Folder of images with known positions to add. Images that the index already holds are not added again.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        mixed_precision: Precision of the encoder.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.localization.building import add_to_place_index

    add_to_place_index(index, folder, accelerator=start_accelerator(mixed_precision), work=work, cache=cache)
    return index


def calibrate_index(
    index: Path,
    *,
    folder: Path,
    work: WorkOptions,
    cache: CacheOptions,
    radius_m: PositiveFloat = 25.0,
    mixed_precision: Precision = "no",
) -> Path:
    """Calibrate the confidence of a place index on photos of known position; returns the folder of the index.

    Args:
        index: Folder of the place index.
        folder: Folder of photos with known positions, taken where and how later queries will be; some may lie outside
            the area of the index. Photos that are in the index themselves are skipped.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        radius_m: A localization within this many meters of the true position is correct. The confidence estimates the
            probability of that.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, or none is localized
            correctly.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.localization.building import calibrate_place_index

    accelerator = start_accelerator(mixed_precision)
    calibrate_place_index(index, folder, radius_m=radius_m, accelerator=accelerator, work=work, cache=cache)
    return index
