"""Read and validate `index.json` of a place index, and update it safely from several commands at once.

An update is a generation: `index_<generation>.json`, a file that only one command can create, names data files that
were written before it. A command that comes second starts again from the result of the first. `index.json` is a copy of
the newest generation.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, get_args

import faiss

from progeo.engine.log import LOGGER
from progeo.evaluation.options import CELLS
from progeo.evaluation.search import save_index
from progeo.files import read_json, write_json, write_new_json
from progeo.image_files import Orientation
from progeo.localization.confidence import AnyCalibration, ClassCalibration, calibration_from_json
from progeo.localization.options import IndexOf
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue

_FORMAT = 1
_METADATA = "index.json"
_GENERATION = re.compile(r"index_([0-9]{1,9})\.json")
ENCODER_FOLDER = "model"
CLASSIFIER_FOLDERS = (ENCODER_FOLDER, "classifier")
"""Folders that may hold the classifier of an index of cells: that of its encoder, or one with another network."""
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class IndexMetadata:
    """Metadata of a place index, the content of `index.json`."""

    kind: str
    """faiss factory string of the descriptor index, or `cells`."""
    probes: int
    encoder: Mapping[str, Any]
    """Fingerprint of the encoder, see `progeo.features.descriptors.descriptor_metadata`."""
    image_size: tuple[int, int]
    database_preprocessing: Preprocessing
    query_preprocessing: Preprocessing
    images: int
    """Number of rows: of images, or of classes."""
    faiss_file: str
    """Name of the faiss file in the folder."""
    catalogue_file: str
    """Name of the catalogue file in the folder."""
    calibration: AnyCalibration | None = None
    orientation: Orientation = "exif"
    """Whether images and queries are rotated upright by their EXIF orientation."""
    of: IndexOf = "images"
    cell_side_m: int = 0
    """Side in meters of the cells of classes; 0 for images."""
    scale: float = 0.0
    """Factor of the cosines of classes before the softmax; 0 for images."""
    classifier: str = ""
    """Folder of the classifier whose classes are the inverted lists: that of the encoder, or `classifier` with another
    network that ranks them. Empty if lists are no cells."""
    partition: str = ""
    """Fingerprint of the classes of that classifier; empty if lists are no cells."""
    generation: int = 0
    """Number of updates since the index was built."""
    format: int = _FORMAT

    @property
    def holds_classes(self) -> bool:
        """Whether rows are classes, not images."""
        return self.of != "images"

    @property
    def rows(self) -> str:
        """Number of rows and what they are, as text."""
        return f"{self.images:,} {self.rows_are}"

    @property
    def rows_are(self) -> str:
        """What the rows are, as text."""
        return "classes" if self.holds_classes else "images"


class DataFiles(TypedDict):
    """Names of the data files of a generation, as in `IndexMetadata`."""

    faiss_file: str
    catalogue_file: str


def new_files() -> DataFiles:
    """Return unique names for the data files of a generation."""
    token = secrets.token_hex(6)
    return {"faiss_file": f"places_{token}.faiss", "catalogue_file": f"catalogue_{token}.arrow"}


def holds_place_index(folder: Path) -> bool:
    """Return whether a folder holds a place index."""
    return (folder / _METADATA).is_file() or bool(_generations(folder))


def read_metadata(folder: Path) -> IndexMetadata:
    """Read the metadata of the newest generation of a place index.

    Raises:
        FileNotFoundError: there is no place index in the folder.
        ValueError: a file is not as progeo writes it; the message names it.
    """
    if not holds_place_index(folder):
        raise FileNotFoundError(f"There is no place index in {folder}: make one with `progeo index build`.")
    newest = max(_generations(folder), default=0)
    metadata = _read(folder / _METADATA) if (folder / _METADATA).is_file() else None
    if metadata is not None and metadata.generation >= newest:
        return metadata
    try:  # its command has not updated `index.json` yet, or was killed before
        return _read(_path(folder, newest))
    except FileNotFoundError:  # a newer one exists by now
        return read_metadata(folder)


def save_generation(
    folder: Path, before: IndexMetadata | None, metadata: IndexMetadata, index: faiss.Index, catalogue: Catalogue
) -> bool:
    """Write an index as the next generation, and remove the data files of the previous one.

    Args:
        before: metadata of the generation it was made from; None for a new index.
        metadata: its metadata, with file names of `new_files`.

    Returns:
        Whether it became the next generation; if another command came first, nothing is changed.
    """
    try:
        save_index(index, folder / metadata.faiss_file)
        catalogue.save(folder / metadata.catalogue_file)
        megabytes = (folder / metadata.faiss_file).stat().st_size / 1e6
        if committed := commit(folder, before, metadata):
            LOGGER.info("place index of %s in %s, %.1f MB and the encoder", metadata.rows, folder, megabytes)
        return committed
    finally:
        current = read_metadata(folder) if holds_place_index(folder) else None
        for each in (before, metadata):
            if each is not None and (current is None or each.faiss_file != current.faiss_file):
                (folder / each.faiss_file).unlink(missing_ok=True)
                (folder / each.catalogue_file).unlink(missing_ok=True)


def commit(folder: Path, before: IndexMetadata | None, metadata: IndexMetadata) -> bool:
    """Commit `metadata` as the generation after `before`; returns False if another command came first."""
    if before is None:
        with suppress(FileExistsError):
            write_new_json(folder / _METADATA, asdict(metadata))
            return True
        return False
    generation = before.generation + 1
    path = _path(folder, generation)
    try:
        write_new_json(path, asdict(replace(metadata, generation=generation)))
    except FileExistsError:
        return False
    if max(_generations(folder)) > generation:  # this number had been used, and removed for a newer one
        path.unlink(missing_ok=True)
        return False
    _publish(folder)
    return True


def _publish(folder: Path) -> None:
    """Copy the newest generation to `index.json`, repeat if a newer one appears meanwhile, and remove older ones."""
    published = -1
    while published < (newest := max(_generations(folder))):
        with suppress(FileNotFoundError):  # a newer one exists by now
            write_json(folder / _METADATA, read_json(_path(folder, newest)))
            published = newest
    for older in _generations(folder) - {published}:
        if older < published:
            _path(folder, older).unlink(missing_ok=True)


def _path(folder: Path, generation: int) -> Path:
    return folder / f"index_{generation}.json"


def _generations(folder: Path) -> set[int]:
    found = (_GENERATION.fullmatch(path.name) for path in folder.glob("index_*.json"))
    return {int(match[1]) for match in found if match}


def _read(path: Path) -> IndexMetadata:
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a place index in format {_FORMAT}.")
    required = {field.name for field in fields(IndexMetadata) if field.default is MISSING}
    if lacking := sorted(required - values.keys()):
        raise ValueError(f"{path} lacks {', '.join(lacking)}: put the file back, or build the index anew.")
    if unknown := sorted(values.keys() - _ALLOWED.keys()):
        raise ValueError(f"{path} has the unknown fields {', '.join(unknown)}: was the index made by a newer progeo?")
    for name, value in values.items():
        is_allowed, expected = _ALLOWED[name]
        if not is_allowed(value):
            raise ValueError(f"{name} in {path} must be {expected}, got {value!r}: put the file back.")
    try:
        calibration = None if values.get("calibration") is None else calibration_from_json(values["calibration"])
    except ValueError as error:
        raise ValueError(f"{path}: {error} Set calibration to null, and run `progeo index calibrate`.") from None
    metadata = IndexMetadata(**{**values, "image_size": tuple(values["image_size"]), "calibration": calibration})
    if not metadata.holds_classes == bool(metadata.cell_side_m) == bool(metadata.scale):
        raise ValueError(f"{path} is of {metadata.of}, which its cell_side_m or scale contradicts: put the file back.")
    if not (metadata.kind == CELLS) == bool(metadata.classifier) == bool(metadata.partition):
        raise ValueError(
            f"The classifier or partition in {path} contradicts its kind, {metadata.kind}: put the file back."
        )
    if calibration is not None and metadata.holds_classes != isinstance(calibration, ClassCalibration):
        raise ValueError(
            f"The calibration in {path} is not one of {metadata.of}: set it to null, and run `progeo index calibrate`."
        )
    if path.name not in (_METADATA, _path(path.parent, metadata.generation).name):
        raise ValueError(
            f"{path} has the content of generation {metadata.generation}: remove it, or put the correct one back."
        )
    return metadata


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= _MAX_COUNT


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 10**9


def _name(stem: str, suffix: str) -> tuple[Callable[[Any], bool], str]:
    """Allow file names as progeo writes them, and no path, which could lead out of the folder."""
    pattern = re.compile(rf"{stem}_[0-9a-f]+\.{suffix}")
    return (
        lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None,
        f"the name of a file in its folder, such as {stem}_200.{suffix}",
    )


_PREPROCESSING = (lambda value: value in get_args(Preprocessing), f"one of {', '.join(get_args(Preprocessing))}")
_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "format": (lambda value: value == _FORMAT, str(_FORMAT)),
        "kind": (lambda value: isinstance(value, str), "a text"),
        "probes": (_is_count, "a whole number from 1"),
        "encoder": (lambda value: isinstance(value, dict), "the fingerprint of an encoder"),
        "image_size": (
            lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
            "height and width in pixels",
        ),
        "database_preprocessing": _PREPROCESSING,
        "query_preprocessing": _PREPROCESSING,
        "images": (_is_count, "a whole number from 1"),
        "faiss_file": _name("places", "faiss"),
        "catalogue_file": _name("catalogue", "arrow"),
        "orientation": (lambda value: value in get_args(Orientation), " or ".join(get_args(Orientation))),
        "calibration": (lambda value: value is None or isinstance(value, dict), "null or a calibration"),
        "of": (lambda value: value in get_args(IndexOf), f"one of {', '.join(get_args(IndexOf))}"),
        "cell_side_m": (_is_natural, "a whole number from 0"),
        "classifier": (lambda value: value in ("", *CLASSIFIER_FOLDERS), f"empty, {' or '.join(CLASSIFIER_FOLDERS)}"),
        "partition": (lambda value: isinstance(value, str), "a text"),
        "scale": (lambda value: type(value) in (int, float) and 0 <= value < 1e15, "a number from 0"),
        "generation": (_is_natural, "a whole number from 0"),
    }
)
"""Allowed fields of `index.json`: for each field of `IndexMetadata` a check, and the text of what it accepts."""
