"""Merge several data sets into one to train on."""

from pathlib import Path

from progeo.config.datasets import MergeSettings


def merge_datasets(folders: tuple[Path, ...], *, out: Path, settings: MergeSettings) -> Path:
    """Write one catalogue of several folders of training images, whose images have places; returns `out`.

    Args:
        folders: Folders of training images. Those that name places, as an import of gsv-cities or another merge, keep
            them; the images of all others are divided into cells together. No image is copied.
        out: Output name. It writes <out>.arrow, and <out> then stands for an image folder, for --data.train_folder and
            --training.batches places.
        settings: How images without places are divided.

    Raises:
        ValueError: no folder is given, an image is in two of them, or the images cannot be divided into cells.
    """
    import numpy as np

    from progeo.datasets.merge import merge_catalogues
    from progeo.datasets.output import write_catalogue
    from progeo.engine.log import LOGGER
    from progeo.places.catalogue import read_catalogue
    from progeo.places.named_places import named_places
    from progeo.printable import counted

    if not folders:
        raise ValueError("Name the `folders` to merge, such as gsv sf_xl/train.")
    catalogues = [read_catalogue(folder) for folder in folders]
    merged = merge_catalogues(catalogues, settings.cells)
    write_catalogue(merged, out, link=False)
    places = named_places(merged, min_images=1)
    LOGGER.info("%s places in %s regions", f"{len(places):,}", f"{len(np.unique(places.regions)):,}")
    if excluded := sum(map(len, catalogues)) - len(merged):
        LOGGER.info("excluded %s in no class of the first groups", counted(excluded, "image"))
    return out
