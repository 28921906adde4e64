"""Plan and write the files of `localize` that other programs read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from progeo.engine.log import LOGGER
from progeo.localization.copies import plan_copies, write_copies
from progeo.localization.frames import is_video
from progeo.localization.localizations import Localization
from progeo.localization.options import ProgramOptions
from progeo.localization.pairs import write_pairs
from progeo.localization.place_index import PlaceIndex


@dataclass(frozen=True)
class PlannedFiles:
    """Files that are written once the photos are localized."""

    options: ProgramOptions
    copies: Mapping[str, Path]
    """Where the copy of each photo goes."""

    def write(self, results: Sequence[Localization]) -> None:
        """Write the files."""
        if self.options.write_exif is not None:
            count = write_copies(results, self.copies)
            LOGGER.info("copies of %d photos with their positions: %s", count, self.options.write_exif)
        if self.options.pairs is not None:
            folder = write_pairs(self.options.pairs, results, self.options.pairs_folder)
            LOGGER.info("pairs: %s, with names relative to %s", self.options.pairs, folder)


def plan_files(index: PlaceIndex, photos: Sequence[Path], options: ProgramOptions) -> PlannedFiles:
    """Check that the files can be written, before the photos are localized.

    Raises:
        ValueError: the index or a video does not fit the options.
        FileExistsError: a copy would replace a file.
    """
    if is_video(photos) and options != ProgramOptions():
        raise ValueError(f"`pairs` and `write_exif` need photos, and {photos[0]} is a video.")
    if options.pairs is not None and index.metadata.holds_classes:
        raise ValueError("`pairs` needs an index of images: classes are no images to pair photos with.")
    if options.write_exif is None:
        return PlannedFiles(options, {})
    if index.metadata.calibration is None:
        raise ValueError("`write_exif` needs a calibrated index: run `progeo index calibrate` first.")
    return PlannedFiles(options, plan_copies(photos, options.write_exif))
