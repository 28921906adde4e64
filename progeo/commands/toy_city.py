"""Toy city: a small rendered city in the real layout, so that everything runs with no download."""

from pathlib import Path

from progeo.config.datasets import ToyCitySettings
from progeo.engine.log import LOGGER, start_log
from progeo.toy_city import render_toy_city


def make_toy_city(settings: ToyCitySettings) -> Path:
    """Render the city and return its folder."""
    start_log(None)
    render_toy_city(settings.out, seed=settings.seed, num_images=settings.num_images, image_size=settings.image_size)
    LOGGER.info("toy city of %d images in %s", settings.num_images, settings.out)
    return settings.out
