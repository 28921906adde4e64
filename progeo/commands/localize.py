"""Localize photos, or find the places that match a sentence."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from progeo.engine.options import Precision
from progeo.features.options import WorkOptions
from progeo.localization.options import ProgramOptions, SequenceOptions
from progeo.unwritten import UnwrittenError

if TYPE_CHECKING:
    from progeo.localization.localizations import Localization


def localize(
    photos: tuple[Path, ...] = (),
    *,
    index: Path,
    work: WorkOptions,
    text: str | None = None,
    top: PositiveInt = 5,
    threshold: ClosedUnitInterval = 0.5,
    near: str | None = None,
    heading: str | None = None,
    verify: bool | None = None,
    out: Path | None = None,
    spreadsheet_safe: bool = False,
    show_paths: bool = False,
    programs: ProgramOptions = ProgramOptions(),
    sequence: SequenceOptions = SequenceOptions(),
    mixed_precision: Precision = "no",
) -> "list[Localization]":
    """Localize photos or a sentence, and write the results to a file.

    Args:
        photos: Photos to localize: image files, and folders that are searched recursively. - reads paths from standard
            input, one a line.
        index: Folder of the place index.
        work: Options of extraction.
        text: Sentence to search the index with instead of photos. Requires an encoder that shares CLIP's text space.
            null searches with photos.
        top: Number of matches to show for each query.
        threshold: Minimum confidence, from 0 to 1. A position with a lower confidence is reported as unknown.
        near: Rough position LAT,LON,RADIUS_M, such as 37.78,-122.41,500: only images within RADIUS_M meters of it can
            match. The result then has no confidence, which is calibrated on searches of the complete index. null
            searches all.
        heading: Rough direction DEG,TOLERANCE, such as 90,30: only images with a heading within TOLERANCE degrees of
            DEG, clockwise from north, can match, and those whose heading is unknown. Without a confidence, as with
            near. null allows all.
        verify: Match each photo with its first 20 matches, and rank these by the number of points that match. null does
            so where the confidence is below the threshold that progeo index calibrate --verify found.
        out: File to write the localizations to, ending in .csv, .geojson, .json, .gpx, .kml or .html, a page with the
            photos, their matches and a map. null writes none.
        spreadsheet_safe: Write an apostrophe in front of texts in a .csv, also in that which a page lets download, that
            a spreadsheet would run as a formula: those that begin with =, +, -, @, a tab or a line break and are no
            numbers.
        show_paths: Show absolute paths on the page, in .gpx and in .kml, which others may read.
        programs: Files that other programs read.
        sequence: Photos that are the frames of a drive or a walk.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: not exactly one of photos and a sentence is given, no photo can be read, no image is near enough, or
            the encoder does not support text.
        OSError: a file cannot be written.
        UnwrittenError: a file could not be written once the photos were localized.
    """
    from progeo.engine.log import LOGGER
    from progeo.localization.extraction import find_photos
    from progeo.localization.frames import localize_sequence
    from progeo.localization.place_index import open_index
    from progeo.localization.programs import plan_files
    from progeo.localization.results import WRITERS, WritingOptions
    from progeo.places.nearby import parse_heading, parse_near

    _refuse_combinations(photos, text, near is not None or heading is not None, programs, sequence)
    if text is not None and verify:
        raise ValueError("`verify` matches photos, and `text` is none: omit one of them.")
    _check_out(out, programs.pairs)
    circle = None if near is None else parse_near(near)
    headings = None if heading is None else parse_heading(heading)
    paths = tuple(path for photo in photos for path in (_paths_of_stdin() if str(photo) == "-" else [photo]))
    opened = open_index(index, mixed_precision=mixed_precision)
    found = [] if text is not None else [Path(str(photo)) for photo in find_photos(paths)]
    planned = plan_files(opened, found, programs)
    options: dict[str, Any] = {"top": top, "threshold": threshold, "verify": verify, **vars(work)}
    options["shows_progress"] = True
    if text is not None:
        from progeo.localization.text_search import localize_text  # photos need no CLIP

        results = [localize_text(opened, text, top=top)]
    elif sequence.sequence:
        results = localize_sequence(opened, found, sequence, **options)
    else:
        results = opened.localize(found, near=circle, heading=headings, **options)
    if text is None and opened.metadata.calibration is None and not opened.metadata.holds_classes:
        LOGGER.info("%s is not calibrated: nothing says how certain a position is; see `progeo index calibrate`", index)
    writers = planned.writers()
    if out is not None:
        writing = WritingOptions(spreadsheet_safe, show_paths, opened, by_text=text is not None)
        writers.append(partial(WRITERS[out.suffix], out, options=writing))
    _write(results, writers)
    if out is not None:
        LOGGER.info("results: %s", out)
    return results


def _write(results: "list[Localization]", writers: "Iterable[Callable[[Sequence[Localization]], None]]") -> None:
    """Write all files that can be written."""
    failures = []
    for write in writers:
        try:
            write(results)
        except (ValueError, OSError) as error:
            failures.append(str(error))
    if failures:
        raise UnwrittenError("\n".join(failures), results)


def _check_out(out: Path | None, pairs: Path | None) -> None:
    from progeo.files import check_can_be_written
    from progeo.localization.results import WRITERS

    if out is None:
        return
    if out.suffix not in WRITERS:
        raise ValueError(f"`out` must end in {', '.join(WRITERS)}, got {out.name}.")
    if pairs is not None and pairs.resolve() == out.resolve():
        raise ValueError(f"`out` and `pairs` are the same file {out}: name two files.")
    check_can_be_written(out)


def _paths_of_stdin() -> list[Path]:
    paths = [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().splitlines() if line]
    if not paths:
        raise ValueError("- reads paths of photos from standard input, one a line, and there are none: give some.")
    return paths


def _refuse_combinations(
    photos: tuple[Path, ...],
    text: str | None,
    is_restricted: bool,
    programs: ProgramOptions,
    sequence: SequenceOptions,
) -> None:
    from progeo.localization.frames import is_video

    if bool(photos) == (text is not None):
        raise ValueError("Give photos to localize, or `text` with a sentence to search by.")
    if text is not None and is_restricted:
        raise ValueError("`near` and `heading` are for photos, and `text` searches the complete index: omit them.")
    if text is not None and (sequence.sequence or programs != ProgramOptions()):
        raise ValueError("`pairs`, `write_exif` and `sequence` need photos, not `text`.")
    if programs.pairs is None and programs.pairs_folder is not None:
        raise ValueError("`pairs_folder` is for the names in `pairs`: name that file too, or omit it.")
    if not sequence.sequence and sequence != SequenceOptions():
        raise ValueError("`sequence_fps` and `max_speed_mps` are for `sequence`: give that too, or omit them.")
    if is_restricted and (sequence.sequence or programs.write_exif is not None):
        raise ValueError("`sequence` and `write_exif` need a confidence: omit `near` and `heading`, which give none.")
    if is_video(photos) and not sequence.sequence:
        raise ValueError(f"{photos[0]} is a video: localize its frames with `sequence`.")
