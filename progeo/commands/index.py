"""Build a place index, add images to it, and calibrate its confidence."""

from pathlib import Path

from progeo.config.evaluation import IndexAddSettings, IndexBuildSettings, IndexCalibrateSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import start_log
from progeo.localization import building


def build_place_index(settings: IndexBuildSettings) -> Path:
    """Extract the descriptors of a folder of images and write a place index; returns its folder.

    Raises:
        ValueError: the folder holds an index already, or the encoder has no weights.
    """
    start_log(None)
    building.build_place_index(
        settings.out,
        settings.folder,
        encoder_name=settings.encoder,
        accelerator=start_accelerator(settings.mixed_precision),
        extraction=settings,
        image_size=settings.image_size,
        database_preprocessing=settings.database_preprocessing,
        query_preprocessing=settings.query_preprocessing,
        orientation=settings.orientation,
        kind=settings.index,
        probes=settings.probes,
    )
    return settings.out


def add_to_place_index(settings: IndexAddSettings) -> Path:
    """Add the images of a folder to a place index; returns the folder of the index."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    building.add_to_place_index(settings.index, settings.folder, accelerator=accelerator, extraction=settings)
    return settings.index


def calibrate_place_index(settings: IndexCalibrateSettings) -> Path:
    """Calibrate the confidence of a place index on photos of known position; returns the folder of the index.

    Raises:
        ValueError: images of the index have no position, fewer than 20 photos are not in it, or none is localized
            correctly.
    """
    start_log(None)
    building.calibrate_place_index(
        settings.index,
        settings.folder,
        radius_m=settings.radius_m,
        accelerator=start_accelerator(settings.mixed_precision),
        extraction=settings,
    )
    return settings.index
