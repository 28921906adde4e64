"""Build a place index, add images to it, remove some, compact and check it, and calibrate its confidence."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from progeo.engine.options import Precision
from progeo.features.options import CacheOptions, ClassOptions, ImageOptions, WorkOptions
from progeo.localization.engines.options import EngineOptions
from progeo.localization.options import IndexOptions
from progeo.locks import locked_if_free

if TYPE_CHECKING:
    from accelerate import Accelerator

    from progeo.engine.dry_run import DryRun


def build_index(
    encoder: str,
    *,
    out: Path,
    folder: Path | None = None,
    options: IndexOptions = IndexOptions(),
    engine_options: EngineOptions = EngineOptions(),
    classes: ClassOptions = ClassOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    mixed_precision: Precision = "no",
    dry_run: bool = False,
) -> "Path | DryRun":
    """Extract the descriptors of images, or of the classes of a map, and write a place index; returns its folder.

    Args:
        encoder: Folder of a run, or of an encoder.
        out: Output folder for the place index.
        folder: Folder of images with known positions, for an index of images or means. In an index of images, one whose
            name has no position is still retrieved, but as a match without a position. null for an index of classes.
        options: The rows of the index, and how they are searched.
        engine_options: The engine that stores and searches the descriptors.
        classes: Cells of class means.
        images: Options of the images of the index.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        mixed_precision: Precision of the encoder.
        dry_run: Check all settings, images and folders, extract descriptors of some images, and show the time and the
            space on the disk that the index would take. Nothing is written.

    Raises:
        ValueError: the folder holds an index already, the encoder has no weights, or options contradict each other.
        ConnectionError: the engine cannot be reached.
        ProblemsError: a dry run finds that files do not fit on the disk.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.dry_run import checked
    from progeo.localization.building import build_place_index
    from progeo.localization.dry_run import dry_run_of_building

    arguments: dict[str, Any] = {
        "encoder_name": encoder,
        "accelerator": start_accelerator(mixed_precision),
        "options": options,
        "engine_options": engine_options,
        "classes": classes,
        "images": images,
        "work": work,
        "cache": cache,
    }
    if dry_run:
        return checked([dry_run_of_building(out, folder, **arguments)])[0]
    build_place_index(out, folder, **arguments)
    return out


def add_to_index(
    index: Path,
    *,
    folder: Path,
    work: WorkOptions,
    cache: CacheOptions,
    wait: bool = False,
    mixed_precision: Precision = "no",
    dry_run: bool = False,
) -> "Path | DryRun":
    """Add the images of a folder to a place index; returns the folder of the index.

    Args:
        index: Folder of the place index.
        folder: Folder of images with known positions to add. Images that the index already holds are not added again.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        wait: Wait until another command that changes the index is done, instead of working beside it.
        mixed_precision: Precision of the encoder.
        dry_run: Check the index and the images, extract descriptors of some of them, and show the time and the space on
            the disk that adding them would take. Nothing is written.

    Raises:
        ProblemsError: a dry run finds that files do not fit on the disk.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.dry_run import checked
    from progeo.localization.adding import add_to_place_index
    from progeo.localization.dry_run import dry_run_of_adding

    accelerator = start_accelerator(mixed_precision)
    if dry_run:
        return checked([dry_run_of_adding(index, folder, accelerator=accelerator, work=work, cache=cache)])[0]
    with _changing(index, accelerator, wait=wait):
        add_to_place_index(index, folder, accelerator=accelerator, work=work, cache=cache)
    return index


def remove_from_index(
    index: Path, *, folder: str | None = None, paths: Path | None = None, near: str | None = None, wait: bool = False
) -> Path:
    """Remove images from a place index; returns the folder of the index.

    Their rows are only marked: `progeo index compact` gives back their space. No image file is touched.

    Args:
        index: Folder of the place index.
        folder: Remove the images in this folder or behind this URL, which need not exist any more, or those of a
            catalogue.
        paths: Remove the images that this text file names, one path or URL a line.
        near: Remove the images within RADIUS_M meters of a position, given as LAT,LON,RADIUS_M, such as
            37.78,-122.41,500.
        wait: Wait until another command that changes the index is done, instead of working beside it.

    Raises:
        ValueError: not exactly one of folder, paths and near is given, the index has none of these images, or no
            others.
    """
    from progeo.localization.removing import in_folder, near_position, remove_from_place_index, with_paths
    from progeo.places.nearby import parse_near
    from progeo.remote_files import path_of

    if sum(given is not None for given in (folder, paths, near)) != 1:
        raise ValueError("Images to remove are chosen by one of `folder`, `paths` and `near`: give one of them.")
    if folder is not None:
        choice = in_folder(path_of(folder))
    else:
        choice = with_paths(paths) if paths is not None else near_position(parse_near(near or ""))
    with locked_if_free(index, wait=wait):
        remove_from_place_index(index, choice)
    return index


def compact_index(index: Path, *, wait: bool = False) -> Path:
    """Write a place index anew in as few parts as possible, without removed images; returns its folder.

    Searches of an index to which was added many times become faster. An index with many times the images that it was
    trained for is trained again. It takes as much space again until the former parts are removed.

    Args:
        index: Folder of the place index.
        wait: Wait until another command that changes the index is done, instead of working beside it.
    """
    from progeo.localization.compacting import compact_place_index

    with locked_if_free(index, wait=wait):
        compact_place_index(index)
    return index


def check_index(index: Path) -> Path:
    """Read all files of a place index and check that they are as they were written; returns its folder.

    Opening an index checks the sizes of all files and a sample of large ones.

    Args:
        index: Folder of the place index.

    Raises:
        ValueError: something is wrong; the message has a line for each fault.
    """
    from progeo.localization.checking import check_place_index

    check_place_index(index)
    return index


def calibrate_index(
    index: Path,
    *,
    folder: Path,
    work: WorkOptions,
    cache: CacheOptions,
    radius_m: PositiveFloat = 25.0,
    max_loss: NonNegativeFloat | None = None,
    verify: bool = False,
    matcher: str = "sift",
    wait: bool = False,
    mixed_precision: Precision = "no",
) -> Path:
    """Calibrate the confidence of a place index on photos of known position; returns the folder of the index.

    Args:
        index: Folder of the place index.
        folder: Folder of photos with known positions, taken where and how later queries will be; some may lie outside
            the area of the index. Photos that are in the index themselves are skipped. For an index of classes, take
            photos that the classes were not made of.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        radius_m: A localization within this many meters of the true position is correct. The confidence estimates the
            probability of that.
        max_loss: Also set the number of lists that a search visits to the fewest that lose at most so many points of
            R@1, within radius_m, against a search of all lists. null keeps it.
        verify: Also match the photos with their first 20 matches, and find the confidence below which localize should
            do so and rank the matches by the number of points that match. That number then counts for the confidence.
            Where verification does not help on these photos, it is switched off.
        matcher: How verify matches two images: sift needs no weights, and takes the local features that progeo index
            build --verify stores; vismatch:NAME, such as vismatch:loftr, is a matcher of the library vismatch, which
            pip install 'progeo[match]' installs.
        wait: Wait until another command that changes the index is done, instead of working beside it.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, or none is localized
            correctly.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.localization.calibration import calibrate_place_index

    if not verify and matcher != "sift":
        raise ValueError(f"`matcher` {matcher} is for verification: set `verify`, or omit it.")
    accelerator = start_accelerator(mixed_precision)
    with _changing(index, accelerator, wait=wait):
        calibrate_place_index(
            index,
            folder,
            radius_m=radius_m,
            max_loss=max_loss,
            matcher=matcher if verify else None,
            accelerator=accelerator,
            work=work,
            cache=cache,
        )
    return index


def _changing(index: Path, accelerator: "Accelerator", *, wait: bool) -> AbstractContextManager[None]:
    """Hold the lock of a place index, which others may change, too: nothing of either is lost."""
    return locked_if_free(index, wait=wait) if accelerator.is_main_process else nullcontext()
