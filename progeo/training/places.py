"""The data a training run learns from (images, classes, groups and texts), checked to be the same when it resumes."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypedDict, cast

import numpy as np
from torch import Tensor, nn

from progeo.data.contents import contents_fingerprint
from progeo.engine.log import LOGGER
from progeo.engine.run_folder import RunFolder
from progeo.files import read_json, write_json
from progeo.json_files import as_kind
from progeo.models.batch_norm import batch_norm_mode
from progeo.models.options import BatchNormMode, ModelOptions
from progeo.models.state_dicts import weights_digest
from progeo.places.catalogue import Catalogue, index_file, read_catalogue
from progeo.places.cells import DescribedPartition, Partition, build_partition, check_same_partition, class_centers
from progeo.places.geographic import Frame, frame_of, positions_m
from progeo.places.named_places import NamedPlaces, named_places
from progeo.places.options import CellOptions
from progeo.training.starting_encoder import starting_statistics

_PLACES = "places.json"
_CROPS = "of the files' own pixels"
"""What stage 2 crops. Earlier versions cropped resized images and did not record it."""
_STATISTICS = ("normalization", "mean", "std", "resize")


class _Listed(TypedDict):
    images: int
    image_list: str
    image_places: str


class _Images(_Listed, total=False):
    """Images of a run, as `_images` describes them."""

    image_folder: str
    image_contents: str


class _Stored(_Images, total=False):
    """Content of `places.json`, besides the classes."""

    further_images: list[_Images]
    validation: list[_Images]
    text_features: str | None
    teacher: str
    class_words: str | None
    configuration: dict[str, Any]
    crops: str


class _DescribedPlaces(TypedDict):
    """Places by name in `places.json`."""

    places: int
    place_images: str


@dataclass(frozen=True)
class TrainingImages:
    """Training images without classes."""

    catalogue: Catalogue
    described_as: ClassVar[type | None] = None
    """Typed dict of what `describe` returns; None if that is nothing."""

    @property
    def catalogues(self) -> tuple[Catalogue, ...]:
        """All training images, whose rows are counted on from one catalogue to the next."""
        return (self.catalogue,)

    @property
    def class_ids(self) -> list[np.ndarray]:
        """Class ids of each group, int64 (C, 3); a single group without any where there are no classes."""
        return [np.empty((0, 3), np.int64)]

    @property
    def classes_per_group(self) -> list[int]:
        """Number of labels of each group."""
        return [*map(len, self.class_ids)]

    def describe(self) -> Mapping[str, Any]:
        """Return what `check_same` compares besides the images."""
        return {}

    def check_same(self, stored: Mapping[str, Any], what: str) -> None:
        """Check that `what` was begun with the same classes.

        Raises:
            ValueError: it was begun with others.
        """


@dataclass(frozen=True)
class TrainingPlaces(TrainingImages):
    """Training images and their classes."""

    partition: Partition
    described_as = DescribedPartition

    @property
    def class_ids(self) -> list[np.ndarray]:
        """Class ids of each group, int64 (C, 3)."""
        return [group.class_ids for group in self.partition.groups]

    def describe(self) -> Mapping[str, Any]:
        """Return the settings and the fingerprint of the classes."""
        return self.partition.describe()

    def check_same(self, stored: Mapping[str, Any], what: str) -> None:
        """Check that `what` was begun with the same classes."""
        check_same_partition(cast(DescribedPartition, stored), self.partition, what)

    @cached_property
    def positions_m(self) -> np.ndarray:
        """East and north of the images in meters, (N, 2), in the frame of the classes."""
        return positions_m(self.catalogue)[0]

    @cached_property
    def frame(self) -> Frame:
        """What the meters of the positions and of the classes are."""
        return frame_of(self.catalogue)

    def from_centers_m(self, rows: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """Return the positions of images from the centers of the cells of their classes, (n, 2) meters.

        Args:
            rows: catalogue rows (n,).
            class_ids: class of each image, (n, 3).
        """
        side = self.partition.settings["cell_side_m"]
        return self.positions_m[rows] - class_centers(class_ids, cell_side_m=side)


@dataclass(frozen=True)
class TrainingNamedPlaces(TrainingImages):
    """Training images and their places by name, a single group."""

    places: NamedPlaces
    described_as = _DescribedPlaces

    @property
    def classes_per_group(self) -> list[int]:
        """Number of places."""
        return [len(self.places)]

    def describe(self) -> Mapping[str, Any]:
        """Return the number and the fingerprint of the places."""
        return {"places": len(self.places), "place_images": self.places.fingerprint}

    def check_same(self, stored: Mapping[str, Any], what: str) -> None:
        """Check that `what` was begun with the same places."""
        if stored["place_images"] != self.places.fingerprint:
            raise ValueError(
                f"{what} was begun with {stored['places']:,} places, now there are {len(self.places):,}, not all the "
                f"same or with other images: name another `out`."
            )


def check_classes(partition: Partition) -> None:
    """Check that labels can be learned: warn of groups with a single class, whose cross-entropy is always 0.

    Raises:
        ValueError: all groups are such.
    """
    single = [str(number) for number, group in enumerate(partition.groups, 1) if group.num_classes == 1]
    if len(single) == len(partition.groups):
        raise ValueError(
            "Every group has a single class, whose cross-entropy is always 0: there is nothing to learn. Use a smaller "
            "`cell_side_m` or `min_images_per_class`, or fewer groups (`groups_per_side`, `groups_per_heading`)."
        )
    if single:
        LOGGER.warning(
            "group %s: a single class, whose cross-entropy is always 0, so that its epochs teach no place",
            ", ".join(single),
        )


def read_training_places(train_folder: Path, cells: CellOptions) -> TrainingPlaces:
    """Read the training images and partition them into groups of classes."""
    catalogue = read_catalogue(train_folder)
    return TrainingPlaces(catalogue, build_partition(catalogue, **vars(cells)))


def read_named_places(train_folder: Path, cells: CellOptions) -> TrainingNamedPlaces:
    """Read the training images and their places that have as many images as a class must have."""
    catalogue = read_catalogue(train_folder, positions="ignored")
    return TrainingNamedPlaces(catalogue, named_places(catalogue, min_images=cells.min_images_per_class))


@dataclass(frozen=True)
class LearnedFrom:
    """Everything that must be unchanged to resume a run, even in another folder; saved as its `places.json`."""

    images: TrainingImages
    validation: Sequence[Catalogue] | None = None
    """Images of the validation."""
    text_features: Sequence[Tensor] | None = None
    """Text features of each group, (C, E)."""
    teacher: str | None = None
    """Digest of the teacher."""
    configuration: Mapping[str, Any] | None = None
    """What decides the features of the CLIP, or of the backbone, beside its weights; None if its name says it all."""
    former_configuration: Mapping[str, Any] | None = None
    """What an earlier version, which recorded none, used in its place; None for the same."""
    class_words: str | None = None
    """Digest of the words of all classes in their prompts."""

    def check(self, run: RunFolder, changed: Collection[str]) -> None:
        """Check that a run resumes with the data it was started with.

        Args:
            run: run folder that holds a state to resume.
            changed: dotted names of settings that have changed since the run was started.

        Raises:
            ValueError: classes, images, crops or texts differ.
        """
        path = run.path / _PLACES
        if not path.is_file():
            return
        stored = read_json(path)
        if not isinstance(stored, dict) or not {"image_list", *self.images.describe()} <= stored.keys():
            raise ValueError(f"{path} does not say what the run learned from: it is corrupt. Name another `out`.")
        for kind in (_Stored, self.images.described_as):
            if kind is not None:
                as_kind(stored, kind, path, advice="Name another `out`.")
        if self.validation is not None and stored.get("crops") != _CROPS:
            raise ValueError(
                f"The run in {run.path} was begun by an earlier version, which cropped images after they were resized, "
                f"and crops {_CROPS} would be another training: continue with that version, or name another `out`."
            )
        self.images.check_same(stored, f"The run in {run.path}")
        train = [stored, *stored.get("further_images", [])]
        before = {"data.train_folder": train, "validation.folder": stored.get("validation", [])}
        for setting, catalogues in self._catalogues().items():
            for values, catalogue in zip(before[setting], catalogues, strict=False):
                folder = values.get("image_folder")  # a link or an index of that name may lead elsewhere by now
                moved = setting in changed if folder is None else folder != str(catalogue.folder.resolve())
                _check_images(run, values, catalogue, moved=moved)
            if setting in changed and not all("image_contents" in values for values in before[setting] or [{}]):
                raise ValueError(f"{path} does not say what was in the images of {setting}: leave it as it was.")
        if stored.get("text_features", self._texts()) != self._texts():
            raise ValueError(
                f"The run in {run.path} was begun with other text features: name the prompts that it was begun with "
                f"as `text.prompts`, or another `out`."
            )
        if stored.get("class_words") != self.class_words:
            raise ValueError(
                f"The run in {run.path} was begun with other words of its classes: name the table that it was begun "
                f"with as `prompts.class_names`, or another `out`."
            )
        if stored.get("teacher", self.teacher) != self.teacher:
            raise ValueError(
                f"The run in {run.path} was begun with another teacher: name the folder of that as `teacher.encoder`, "
                f"or another `out`."
            )

        former = self.configuration if self.former_configuration is None else self.former_configuration
        if stored.get("configuration", former) != self.configuration:
            earlier = "by an earlier version, which built another network from `model.weights`"
            began = "with another configuration of `model.weights`" if "configuration" in stored else earlier
            raise ValueError(f"The run in {run.path} was begun {began}: name another `out`.")

    def keep(self, run: RunFolder) -> None:
        """Save what `check` compares with."""
        (_, *further), *validation = self._catalogues().values()
        values = {**self._first_images, **self.images.describe()}
        if further:
            values["further_images"] = [_images(catalogue) for catalogue in further]
        if validation:
            values |= {
                "validation": [_images(catalogue) for catalogue in validation[0]],
                "text_features": self._texts(),
                "crops": _CROPS,
            }
        for name in ("teacher", "configuration", "class_words"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        write_json(run.path / _PLACES, values)

    def fingerprints(self, train_folder: Path) -> dict[str, dict[str, Any]]:
        """Return what `changed_data` compares, by folder; empty if the images are of folders inside `train_folder`."""
        train = self.images.catalogues[0]
        if train.folder != train_folder and not index_file(train_folder).is_file():
            return {}
        not_compared = {"image_folder", *([] if np.isfinite(train.east).any() else ["image_places"])}
        return {
            str(train_folder): {name: self._first_images[name] for name in self._first_images.keys() - not_compared}
        }

    @cached_property
    def _first_images(self) -> dict[str, Any]:
        return _images(self.images.catalogues[0])

    def _catalogues(self) -> dict[str, list[Catalogue]]:
        """Return the catalogues by the name of the setting that gives their folder."""
        found = {"data.train_folder": list(self.images.catalogues)}
        if self.validation is not None:
            found["validation.folder"] = list(self.validation)
        return found

    def _texts(self) -> str | None:
        if self.text_features is None:
            return None
        return weights_digest({str(group): features for group, features in enumerate(self.text_features)})


def check_pixels(run: RunFolder, model: ModelOptions, changed: Mapping[str, Any]) -> None:
    """Check that changed settings still give the same pixel mean, std and interpolation."""
    former = {name: changed[f"model.{name}"] for name in _STATISTICS if f"model.{name}" in changed}
    if not former:
        return
    before, now = starting_statistics(replace(model, **former)), starting_statistics(model)
    if replace(before, source="") != replace(now, source=""):
        raise ValueError(
            f"The run in {run.path} was begun with pixels of {before}; now they would have {now}: give "
            f"{' '.join(f'`model.{name}` {_as_word(value)}' for name, value in former.items())}, or name another `out`."
        )


def check_batch_norm(
    run: RunFolder, batch_norm: BatchNormMode, image_tower: nn.Module, changed: Mapping[str, Any]
) -> None:
    """Check that a changed batch-norm setting does not change the image features."""
    before = changed.get("prompts.batch_norm", batch_norm)
    if batch_norm_mode(image_tower, before) == batch_norm_mode(image_tower, batch_norm):
        return
    raise ValueError(
        f"The run in {run.path} was begun with image features of `prompts.batch_norm` {before}; now it is "
        f"{batch_norm}, and they would be others: set `prompts.batch_norm` {before}, or name another `out`."
    )


def _as_word(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _images(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "image_folder": str(catalogue.folder.resolve()),
        "images": len(catalogue),
        "image_list": catalogue.fingerprint,
        "image_places": catalogue.places_fingerprint,
        "image_contents": contents_fingerprint(catalogue),
    }


def _check_images(run: RunFolder, before: Mapping[str, Any], catalogue: Catalogue, *, moved: bool) -> None:
    """Compare names and places, and also file contents if the folder has changed."""
    if before["image_list"] != catalogue.fingerprint:
        raise ValueError(
            f"The run in {run.path} was begun with {before['images']} images in {catalogue.folder}, now there "
            f"are {len(catalogue)}, not all the same or in another order: name another `out`."
        )
    if before["image_places"] != catalogue.places_fingerprint:
        raise ValueError(
            f"The run in {run.path} was begun with images of {catalogue.folder} at other places or with other "
            f"headings: name another `out`."
        )
    if moved and before.get("image_contents", now := contents_fingerprint(catalogue)) != now:
        raise ValueError(
            f"The run in {run.path} was begun with images of the same names, but those in {catalogue.folder} are "
            f"others: name the folder that has them, or another `out`."
        )
