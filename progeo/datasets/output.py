"""Write the catalogues of imported data sets."""

import logging
from pathlib import Path

from progeo.atomic import replacing_folder
from progeo.places.catalogue import Catalogue, index_file
from progeo.places.extent import extent_of
from progeo.places.geographic import link_images, links_to_images

_LOGGER = logging.getLogger("progeo")


def folder_of(out: Path) -> Path:
    """Return the folder that a catalogue stands for; `out` may also name the .arrow file itself."""
    return out.with_suffix("") if out.suffix == ".arrow" else out


def write_catalogue(catalogue: Catalogue, out: Path, *, link: bool) -> Path:
    """Write the catalogue that stands for the folder `out`, and with `link` also that folder of symbolic links."""
    file = save_catalogue(catalogue, folder_of(out), link=link)
    log_catalogue(catalogue, file)
    return file


def save_catalogue(catalogue: Catalogue, folder: Path, *, link: bool) -> Path:
    """Write the catalogue that stands for a folder, and with `link` also the folder, without a word in the log.

    Raises:
        FileExistsError: the folder has other files than these links.
    """
    if link and not links_to_images(catalogue, folder):
        with replacing_folder(folder) as links:
            link_images(catalogue, links)
    file = index_file(folder)
    catalogue.save(file, {"root": str(catalogue.folder.resolve())})
    return file


def log_catalogue(catalogue: Catalogue, file: Path) -> None:
    """Log the file of a catalogue, and where its images are."""
    zones = sorted(set(catalogue.zone.tolist()) - {0})
    _LOGGER.info(
        "%s: %s images of %s%s",
        file,
        f"{len(catalogue):,}",
        catalogue.folder,
        f", in UTM zone {', '.join(map(str, zones))}" if zones else "",
    )
    if (extent := extent_of(catalogue)) is not None:
        _LOGGER.info("%s %s", extent.text, extent.map_link)
        for row, reason in list(extent.elsewhere.items())[:1]:
            _LOGGER.warning(
                "%d of %s images are misplaced, the first is %s: %s",
                len(extent.elsewhere),
                f"{len(catalogue):,}",
                catalogue.name(row),
                reason,
            )
