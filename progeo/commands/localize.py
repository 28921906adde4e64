"""Localize photos, or find the places that match a sentence."""

from progeo.config.evaluation import LocalizeSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.localization.localize import Localization, find_photos, localize_photos, localize_text
from progeo.localization.place_index import open_place_index
from progeo.localization.results import WRITERS, result_lines


def localize(settings: LocalizeSettings) -> list[Localization]:
    """Localize photos or a sentence, print the results and write them to a file.

    Raises:
        ValueError: not exactly one of photos and a sentence is given, no photo can be read, or the encoder does not
            support text.
    """
    start_log(None)
    if bool(settings.photos) == (settings.text is not None):
        raise ValueError("Give photos to localize, or --text with a sentence to search by.")
    if settings.out is not None and settings.out.suffix not in WRITERS:
        raise ValueError(f"--out must end in {', '.join(WRITERS)}, got {settings.out.name}.")
    index = open_place_index(settings.index)
    if settings.text is not None:
        results = [localize_text(index, settings.text, top=settings.top)]
    else:
        results = localize_photos(
            index,
            find_photos(settings.photos),
            accelerator=start_accelerator(settings.mixed_precision),
            top=settings.top,
            threshold=settings.threshold,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
        )
    if settings.out is not None:
        WRITERS[settings.out.suffix](settings.out, results)
    for result in results:
        print("\n".join(result_lines(result)))
    if settings.out is not None:
        LOGGER.info("results: %s", settings.out)
    return results
