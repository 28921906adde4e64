"""Render a toy city with the layout of a real data set, so that everything can be tried without a download."""

from pathlib import Path

from progeo.config.datasets import ToyCitySettings
from progeo.engine.log import LOGGER, start_log
from progeo.toy_city import render_toy_city


def make_toy_city(settings: ToyCitySettings) -> Path:
    """Render the toy city and return its folder."""
    start_log(None)
    render_toy_city(settings.out, seed=settings.seed, num_images=settings.num_images, image_size=settings.image_size)
    LOGGER.info("toy city of %d images in %s", settings.num_images, settings.out)
    return settings.out
