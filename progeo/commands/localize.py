"""Localize photos, or find the places that match a sentence."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from progeo.engine.options import Precision
from progeo.features.options import WorkOptions

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
    mixed_precision: Precision = "no",
) -> "list[Localization]":
    """Localize photos or a sentence, and write the results to a file.

    Args:
        photos: Photos to localize: image files, and folders that are searched recursively.
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
        out: File to write the localizations to, ending in .csv, .geojson, .json or .html, a page with the photos, their
            matches and a map. null writes none.
        spreadsheet_safe: Write an apostrophe in front of texts in a .csv, also in that which a page lets download, that
            a spreadsheet would run as a formula: those that begin with =, +, -, @, a tab or a line break and are no
            numbers.
        show_paths: Show absolute paths on the page, which others may read.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: not exactly one of photos and a sentence is given, no photo can be read, no image is near enough, or
            the encoder does not support text.
    """
    from progeo.engine.log import LOGGER
    from progeo.localization.place_index import open_index
    from progeo.localization.results import WRITERS, WritingOptions
    from progeo.localization.text_search import localize_text
    from progeo.places.nearby import parse_heading, parse_near

    if bool(photos) == (text is not None):
        raise ValueError("Give photos to localize, or `text` with a sentence to search by.")
    if text is not None and (near is not None or heading is not None):
        raise ValueError("`near` and `heading` are for photos, and `text` searches the complete index: omit them.")
    if text is not None and verify:
        raise ValueError("`verify` matches photos, and `text` is none: omit one of them.")
    if out is not None and out.suffix not in WRITERS:
        raise ValueError(f"`out` must end in {', '.join(WRITERS)}, got {out.name}.")
    circle = None if near is None else parse_near(near)
    headings = None if heading is None else parse_heading(heading)
    opened = open_index(index, mixed_precision=mixed_precision)
    if text is not None:
        results = [localize_text(opened, text, top=top)]
    else:
        results = opened.localize(
            photos,
            top=top,
            threshold=threshold,
            near=circle,
            heading=headings,
            verify=verify,
            **vars(work),
            shows_progress=True,
        )
    if out is not None:
        options = WritingOptions(spreadsheet_safe, show_paths, opened, by_text=text is not None)
        WRITERS[out.suffix](out, results, options)
        LOGGER.info("results: %s", out)
    return results
