"""Plan and write the files of `localize` that other programs read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from progeo.engine.log import LOGGER
from progeo.files import check_can_be_written
from progeo.localization.copies import plan_copies, write_copies
from progeo.localization.frames import is_video
from progeo.localization.localizations import Localization
from progeo.localization.options import ProgramOptions
from progeo.localization.pairs import pair_names, write_pairs
from progeo.localization.place_index import PlaceIndex


@dataclass(frozen=True)
class PlannedFiles:
    """Files that are written once the photos are localized."""

    options: ProgramOptions
    copies: Mapping[str, Path]
    """Where the copy of each photo goes."""
    pairs_folder: Path | None
    """Folder that the names of pairs are relative to; None writes no pairs."""

    def writers(self) -> list[Callable[[Sequence[Localization]], None]]:
        """Return functions that write results to the files; they raise ValueError or OSError."""
        wanted = ((self.options.write_exif, self._write_copies), (self.options.pairs, self._write_pairs))
        return [write for file, write in wanted if file is not None]

    def _write_copies(self, results: Sequence[Localization]) -> None:
        count = write_copies(results, self.copies)
        LOGGER.info("copies of %d photos with their positions: %s", count, self.options.write_exif)

    def _write_pairs(self, results: Sequence[Localization]) -> None:
        assert self.options.pairs is not None
        write_pairs(self.options.pairs, results, self.pairs_folder)
        LOGGER.info("pairs: %s, with names relative to %s", self.options.pairs, self.pairs_folder)


def plan_files(index: PlaceIndex, photos: Sequence[Path], options: ProgramOptions) -> PlannedFiles:
    """Check that the files can be written, before the photos are localized.

    Raises:
        ValueError: the index, a video or the name of an image does not fit the options.
        OSError: a copy would replace a file, or a file cannot be written.
    """
    if is_video(photos) and options != ProgramOptions():
        raise ValueError(f"`pairs` and `write_exif` need photos, and {photos[0]} is a video.")
    copies, folder = {}, None
    if options.pairs is not None:
        folder = _pairs_folder(index, photos, options.pairs, options.pairs_folder)
    if options.write_exif is not None:
        if index.metadata.calibration is None:
            raise ValueError("`write_exif` needs a calibrated index: run `progeo index calibrate` first.")
        copies = plan_copies(photos, options.write_exif)
    return PlannedFiles(options, copies, folder)


def _pairs_folder(index: PlaceIndex, photos: Sequence[Path], pairs: Path, folder: Path | None) -> Path:
    if index.metadata.holds_classes:
        raise ValueError("`pairs` needs an index of images: classes are no images to pair photos with.")
    check_can_be_written(pairs)
    images = index.images.table["path"]
    texts = (text for batch in images.iterchunks() for text in batch.to_pylist())
    folder, _ = pair_names(chain(map(str, photos), texts), folder)
    return folder
