"""Cut panoramas into perspective views, named by the standard convention."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from progeo.atomic import replacing
from progeo.data.decode import read_shape
from progeo.data.options import ViewOptions
from progeo.data.panoramas import cut_views, read_panorama, width_for
from progeo.files import each_file, read_json, write_json
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.filename import ParsedNames
from progeo.places.view_names import panorama_fields, views_of

_LOGGER = logging.getLogger("progeo")
_JPEG_QUALITY = 95
_END_OF_JPEG = b"\xff\xd9"
_ROUNDING_PX = 2


def cut_panoramas(panoramas: Path, out: Path, options: ViewOptions) -> None:
    """Cut each panorama of a folder or catalogue into views in `out`, skipping those that exist.

    Raises:
        ValueError: a panorama does not cover 360 degrees, panoramas have no position or none can be read, or the folder
            holds views with other settings.
    """
    if options.fov >= 180:
        raise ValueError(f"`fov` must be below 180 degrees, got {options.fov:g}. Use for example 90.")
    if out.resolve().is_relative_to(panoramas.resolve()):
        raise ValueError(f"{out} lies in {panoramas}, where views would be taken for panoramas.")
    catalogue = read_catalogue(panoramas)
    fields = panorama_fields(catalogue)
    without_heading = int(np.isnan(catalogue.heading).sum())
    if without_heading:
        _LOGGER.warning(
            "%d of %d panoramas have no heading: their views begin at the center column and have no heading either",
            without_heading,
            len(catalogue),
        )
    waiting = _waiting(catalogue, fields, out, options.headings)
    _keep_options(out, options)
    failed = 0
    for reason in _cut(catalogue, fields, waiting, out, options):
        if reason:
            _LOGGER.warning(reason)
            failed += 1
    if failed == len(catalogue):
        raise ValueError(f"None of the {failed} panoramas of {panoramas} can be read.")
    _LOGGER.info(
        "%d views of each of %s panoramas in %s; %s were there already, %d panoramas cannot be read",
        options.headings,
        f"{len(catalogue) - failed:,}",
        out,
        f"{len(catalogue) - len(waiting):,}",
        failed,
    )


def _waiting(catalogue: Catalogue, fields: ParsedNames, out: Path, headings: int) -> list[int]:
    """Return the rows of panoramas with missing views.

    Raises:
        ValueError: one of them is not twice as wide as high.
    """

    def look(row: int) -> tuple[int, int] | None:
        """Return height and width if views are missing, (0, 0) for an unreadable file, None if no view is missing."""
        names, _ = views_of(fields, row, headings)
        if all(_is_complete(out / name) for name in names):
            return None
        return read_shape(catalogue.path(row)) or (0, 0)

    rows = range(len(catalogue))
    shapes = each_file(look, rows, total=len(rows), description=f"looking at {catalogue.folder}")
    found = {row: shape for row, shape in enumerate(shapes) if shape is not None}
    partial = [row for row, (height, width) in found.items() if abs(width - 2 * height) > _ROUNDING_PX]
    if partial:
        height, width = found[partial[0]]
        raise ValueError(
            f"{len(partial)} of {len(catalogue)} panoramas are not twice as wide as high, the first is "
            f"{catalogue.path(partial[0])} with {width} x {height} pixels: only panoramas that go all around and from "
            f"zenith to nadir can be cut. Take the others out of {catalogue.folder}."
        )
    return list(found)


def _cut(
    catalogue: Catalogue, fields: ParsedNames, rows: list[int], out: Path, options: ViewOptions
) -> Iterator[str | None]:
    """Write the missing views; yields for each panorama why it cannot be read, or None."""

    def cut(row: int) -> str | None:
        names, turns_deg = views_of(fields, row, options.headings)
        missing = [number for number, name in enumerate(names) if not _is_complete(out / name)]
        try:
            panorama = read_panorama(catalogue.path(row), width_for(options.fov, options.size))
        except ValueError as error:
            return str(error)
        views = cut_views(panorama, turns_deg[missing].tolist(), fov_deg=options.fov, size=options.size)
        for number, view in zip(missing, views, strict=True):
            with replacing(out / names[number]) as temporary:
                Image.fromarray(view.permute(1, 2, 0).numpy()).save(temporary, "JPEG", quality=_JPEG_QUALITY)
        return None

    return each_file(cut, rows, total=len(rows), description=f"cutting {catalogue.folder}")


def _is_complete(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.seek(-len(_END_OF_JPEG), os.SEEK_END)
            return stream.read() == _END_OF_JPEG
    except OSError:
        return False


def _keep_options(out: Path, options: ViewOptions) -> None:
    """Save the options of the views of a folder, or check that they match those saved before."""
    file = out / "views.json"
    values = vars(options)
    before = read_json(file) if file.is_file() else values
    if before != values:
        raise ValueError(f"{out} holds views of other options: {before}, now {values}. Name another folder.")
    write_json(file, values)
