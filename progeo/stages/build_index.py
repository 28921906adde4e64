"""Making a place index, adding to it, and learning how sure its answers may be."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.config.evaluation import IndexAddSettings, IndexBuildSettings, IndexCalibrateSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.confidence import calibrate
from progeo.evaluation.search import add_to_index, build_index, load_index
from progeo.export.weights import load_encoder
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue, check_zones, positions_m, read_catalogue
from progeo.stages.encoder_descriptors import described, encoder_describer, identity
from progeo.stages.place_index import (
    About,
    holds_place_index,
    open_place_index,
    placed,
    save_model,
    save_place_index,
    write_about,
)

_FEWEST_PHOTOS = 20


def build_place_index(settings: IndexBuildSettings) -> Path:
    """Describe images and write a place index of them; returns its folder.

    Raises:
        ValueError: there is an index already, an encoder without weights, or an image without a position.
    """
    start_log(None)
    if holds_place_index(settings.out):
        raise ValueError(f"{settings.out} holds a place index already: add to it, or name another --out.")
    accelerator = start_accelerator(settings.mixed_precision)
    encoder = load_encoder(settings.encoder)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"A place index needs an encoder with weights of its own, {settings.encoder} has none.")
    catalogue = read_catalogue(settings.folder)
    images = placed(catalogue)
    check_zones(images)
    describer = encoder_describer(
        encoder,
        settings.database_preprocessing,
        settings.image_size,
        accelerator,
        orientation=settings.orientation,
    )
    descriptors = described(describer, catalogue, settings, accelerator)
    if accelerator.is_main_process:
        about = About(
            kind=settings.index,
            probes=settings.probes,
            encoder=identity(encoder),
            image_size=describer.image_size,
            database_preprocessing=settings.database_preprocessing,
            query_preprocessing=settings.query_preprocessing,
            orientation=settings.orientation,
        )
        index = build_index(descriptors, settings.index)
        save_model(settings.out, encoder, settings.encoder)
        save_place_index(settings.out, about, index, images)
    return settings.out


def add_to_place_index(settings: IndexAddSettings) -> Path:
    """Add the images of a folder that a place index does not hold yet; returns its folder."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    opened = open_place_index(settings.index)
    catalogue = read_catalogue(settings.folder)
    images = placed(catalogue)
    check_zones(opened.catalogue, images)
    held = pc.is_in(images.table["path"], value_set=opened.catalogue.table["path"].combine_chunks())
    new = np.flatnonzero(~held.to_numpy())
    if len(new) < len(catalogue):
        LOGGER.info("%d of %d images are in the index already", len(catalogue) - len(new), len(catalogue))
    if not len(new):
        return settings.index
    describer = opened.describer(opened.about.database_preprocessing, accelerator)
    descriptors = described(describer, catalogue.take(new), settings, accelerator)
    if accelerator.is_main_process:
        index = load_index(settings.index / opened.about.faiss_file)
        add_to_index(index, descriptors)
        table = pa.concat_tables([opened.catalogue.table, images.take(new).table])
        save_place_index(settings.index, opened.about, index, Catalogue(settings.index, table))
        if opened.calibration is not None:
            LOGGER.warning("confidence was calibrated before these were in: run `progeo index calibrate` again")
    return settings.index


def calibrate_place_index(settings: IndexCalibrateSettings) -> Path:
    """Search photos of known places in a place index, and note how sure its answers may be; returns its folder.

    Raises:
        ValueError: fewer than 20 photos, or none that is found.
    """
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    opened = open_place_index(settings.index)
    photos = read_catalogue(settings.folder)
    places = placed(photos)
    check_zones(opened.catalogue, places)
    if len(photos) < _FEWEST_PHOTOS:
        raise ValueError(f"Confidence wants at least {_FEWEST_PHOTOS} photos, {settings.folder} has {len(photos)}.")
    describer = opened.describer(opened.about.query_preprocessing, accelerator)
    descriptors = described(describer, photos, settings, accelerator)
    if not accelerator.is_main_process:
        return settings.index
    found = opened.search(np.concatenate(list(descriptors.parts())))
    matches_m, photos_m = positions_m(opened.catalogue.take(np.maximum(found.rows[:, 0], 0)), places)
    answered = found.rows[:, 0] >= 0
    right = answered & (np.linalg.norm(matches_m - photos_m, axis=1) <= settings.radius_m)
    if not right.any():
        raise ValueError(
            f"None of the {len(photos)} photos in {settings.folder} was found within {settings.radius_m:g} m: "
            f"were they taken where the images of {settings.index} were?"
        )
    calibration = calibrate(opened.evidence(found, settings.radius_m)[answered], right[answered], settings.radius_m)
    write_about(settings.index, replace(opened.about, calibration=asdict(calibration)))
    LOGGER.info(
        "%d of %d photos found within %g m; confidence is off by %.1f points on average",
        calibration.num_right,
        len(photos),
        settings.radius_m,
        100 * calibration.error,
    )
    return settings.index
