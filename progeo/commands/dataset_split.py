"""Hold photos of known places out of a training set, to evaluate with."""

from pathlib import Path

from progeo.config.datasets import SplitSettings


def split_dataset(folder: Path, *, out: Path, link: bool = False, settings: SplitSettings) -> Path:
    """Divide training images into images to train with and queries at the same places; returns `out`.

    Args:
        folder: Folder of training images.
        out: Output folder. Two catalogues are written to it, and no image is copied: <out>/train for
            --data.train_folder, and <out>/queries for `progeo evaluate --folder <out>`, with --by classes, or with
            --database train to retrieve the training images.
        link: Also create the two folders, with symbolic links with the standard file names, for other tools.
        settings: Which images are held out.

    Raises:
        ValueError: `out` holds such files already, not exactly one of `every` and `per_class` is given, or too few
            images are there.
    """
    from progeo.atomic import written_together
    from progeo.datasets.output import log_catalogue, save_catalogue
    from progeo.datasets.split import every_nth_position, last_of_each_class
    from progeo.engine.log import LOGGER
    from progeo.places.catalogue import index_file, read_catalogue

    every, per_class, seed = settings.every, settings.per_class, settings.seed
    catalogue = read_catalogue(folder)
    if every is not None and per_class is None:
        rows = every_nth_position(catalogue, every, seed=seed)
    elif per_class is not None and every is None:
        rows = last_of_each_class(catalogue, per_class, settings.cells, seed=seed)
    else:
        raise ValueError("Give one of `every` and `per_class`, and not both.")
    if seed is not None:
        LOGGER.info("the queries are drawn at random with the seed %d", seed)
    sides = {"train": catalogue.without(rows), "queries": catalogue.take(rows)}
    names = [index_file(Path(side)).name for side in sides]
    with written_together(out.resolve(), [*sides, *names]) as unfinished:
        for side, images in sides.items():
            save_catalogue(images, unfinished / side, link=link)
    for name, images in zip(names, sides.values(), strict=True):
        log_catalogue(images, out / name)
    LOGGER.info("train with --data.train_folder %s, evaluate with --folder %s", out / "train", out)
    if per_class is not None:
        fewer = max(settings.cells.min_images_per_class - per_class, 1)
        LOGGER.info("classes have fewer images now: train with --cells.min_images_per_class %d", fewer)
    return out
