"""Cut panoramas into perspective views, named by the standard convention."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from progeo.config.datasets import DatasetViewsSettings
from progeo.data.decode import read_shape
from progeo.data.panoramas import cut_views, read_panorama, width_for
from progeo.engine.log import LOGGER, start_log
from progeo.files import each_file, read_json, replacing, write_json
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.filename import ParsedNames
from progeo.places.view_names import panorama_fields, views_of

_JPEG_QUALITY = 95
_END_OF_JPEG = b"\xff\xd9"
_ROUNDING_PX = 2


def cut_panoramas(settings: DatasetViewsSettings) -> Path:
    """Cut each panorama into views, skipping those that exist, and return their folder.

    Raises:
        ValueError: a panorama does not cover 360 degrees, panoramas have no position or none can be read, or the folder
            holds views with other settings.
    """
    start_log(None)
    if settings.fov >= 180:
        raise ValueError(f"fov must be below 180 degrees, got {settings.fov:g}. Use for example 90.")
    if settings.out.resolve().is_relative_to(settings.panoramas.resolve()):
        raise ValueError(f"{settings.out} lies in {settings.panoramas}, where views would be taken for panoramas.")
    catalogue = read_catalogue(settings.panoramas)
    fields = panorama_fields(catalogue)
    without_heading = int(np.isnan(catalogue.heading).sum())
    if without_heading:
        LOGGER.warning(
            "%d of %d panoramas have no heading: their views begin at the center column and have no heading either",
            without_heading,
            len(catalogue),
        )
    waiting = _waiting(catalogue, fields, settings)
    _keep_settings(settings)
    failed = 0
    for reason in _cut(catalogue, fields, waiting, settings):
        if reason:
            LOGGER.warning(reason)
            failed += 1
    if failed == len(catalogue):
        raise ValueError(f"None of the {failed} panoramas of {settings.panoramas} can be read.")
    LOGGER.info(
        "%d views of each of %s panoramas in %s; %s were there already, %d panoramas cannot be read",
        settings.headings,
        f"{len(catalogue) - failed:,}",
        settings.out,
        f"{len(catalogue) - len(waiting):,}",
        failed,
    )
    return settings.out


def _waiting(catalogue: Catalogue, fields: ParsedNames, settings: DatasetViewsSettings) -> list[int]:
    """Return the rows of panoramas with missing views.

    Raises:
        ValueError: one of them is not twice as wide as high.
    """

    def look(row: int) -> tuple[int, int] | None:
        """Return height and width if views are missing, (0, 0) for an unreadable file, None if no view is missing."""
        names, _ = views_of(fields, row, settings.headings)
        if all(_is_complete(settings.out / name) for name in names):
            return None
        return read_shape(catalogue.path(row)) or (0, 0)

    rows = range(len(catalogue))
    shapes = each_file(look, rows, total=len(rows), description=f"looking at {settings.panoramas}")
    found = {row: shape for row, shape in enumerate(shapes) if shape is not None}
    partial = [row for row, (height, width) in found.items() if abs(width - 2 * height) > _ROUNDING_PX]
    if partial:
        height, width = found[partial[0]]
        raise ValueError(
            f"{len(partial)} of {len(catalogue)} panoramas are not twice as wide as high, the first is "
            f"{catalogue.path(partial[0])} with {width} x {height} pixels: only panoramas that go all around and from "
            f"zenith to nadir can be cut. Take the others out of {settings.panoramas}."
        )
    return list(found)


def _cut(
    catalogue: Catalogue, fields: ParsedNames, rows: list[int], settings: DatasetViewsSettings
) -> Iterator[str | None]:
    """Write the missing views; yields for each panorama why it cannot be read, or None."""

    def cut(row: int) -> str | None:
        names, turns_deg = views_of(fields, row, settings.headings)
        missing = [number for number, name in enumerate(names) if not _is_complete(settings.out / name)]
        try:
            panorama = read_panorama(catalogue.path(row), width_for(settings.fov, settings.size))
        except ValueError as error:
            return str(error)
        views = cut_views(panorama, turns_deg[missing].tolist(), fov_deg=settings.fov, size=settings.size)
        for number, view in zip(missing, views, strict=True):
            with replacing(settings.out / names[number]) as temporary:
                Image.fromarray(view.permute(1, 2, 0).numpy()).save(temporary, "JPEG", quality=_JPEG_QUALITY)
        return None

    return each_file(cut, rows, total=len(rows), description=f"cutting {settings.panoramas}")


def _is_complete(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.seek(-len(_END_OF_JPEG), os.SEEK_END)
            return stream.read() == _END_OF_JPEG
    except OSError:
        return False


def _keep_settings(settings: DatasetViewsSettings) -> None:
    """Save the settings of the views of a folder, or check that they match those saved before."""
    file = settings.out / "views.json"
    values = {"headings": settings.headings, "fov": settings.fov, "size": settings.size}
    before = read_json(file) if file.is_file() else values
    if before != values:
        raise ValueError(f"{settings.out} holds views of other settings: {before}, now {values}. Name another folder.")
    write_json(file, values)
