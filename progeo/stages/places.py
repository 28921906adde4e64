"""The places that a training is about: images, classes and groups, the same from a run's first day to its last."""

from dataclasses import dataclass

from progeo.config.training import Settings
from progeo.engine.run_folder import RunFolder
from progeo.files import read_json, write_json
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cells import Partition, build_partition, check_same_partition

_PLACES = "places.json"


@dataclass(frozen=True)
class TrainingPlaces:
    """Training images and their classes."""

    catalogue: Catalogue
    partition: Partition


def read_training_places(settings: Settings) -> TrainingPlaces:
    """Find the training images and cut them into groups of classes."""
    catalogue = read_catalogue(settings.data.train_folder)
    return TrainingPlaces(catalogue, build_partition(catalogue, **vars(settings.cells)))


def keep_places(run: RunFolder, places: TrainingPlaces) -> None:
    """Note the places of a new run; of one that goes on, check that they are still the same.

    Raises:
        ValueError: classes or images changed since the run began.
    """
    path = run.path / _PLACES
    now = {
        "images": len(places.catalogue),
        "image_list": places.catalogue.fingerprint,
        "image_places": places.catalogue.places_fingerprint,
        **places.partition.describe(),
    }
    if not (path.is_file() and run.begun):
        write_json(path, now)
        return
    stored = read_json(path)
    check_same_partition(stored, places.partition, f"The run in {run.path}")
    if stored["image_list"] != now["image_list"]:
        raise ValueError(
            f"The run in {run.path} was begun with {stored['images']} images in {places.catalogue.folder}, now there "
            f"are {now['images']}, not all the same or in another order: name another --run."
        )
    if stored["image_places"] != now["image_places"]:
        raise ValueError(
            f"The run in {run.path} was begun with images of {places.catalogue.folder} at other places or with other "
            f"headings: name another --run."
        )
