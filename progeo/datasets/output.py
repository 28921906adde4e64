"""Write the catalogues of imported data sets."""

import logging
from pathlib import Path

from progeo.places.catalogue import Catalogue, index_file
from progeo.places.extent import extent_of
from progeo.places.geographic import link_images

_LOGGER = logging.getLogger("progeo")


def folder_of(out: Path) -> Path:
    """Return the folder that a catalogue stands for; `out` may also name the .arrow file itself."""
    return out.with_suffix("") if out.suffix == ".arrow" else out


def write_catalogue(catalogue: Catalogue, out: Path, *, link: bool) -> Path:
    """Write the catalogue that stands for the folder `out`, and with `link` also that folder of symbolic links."""
    out = folder_of(out)
    file = index_file(out)
    if link:
        link_images(catalogue, out)
    catalogue.save(file, {"root": str(catalogue.folder.resolve())})
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
    return file
