"""Read and validate `index.json` of a place index, and update it safely from several commands at once.

An update is a generation: `index_<generation>.json`, a file that only one command can create, names data files that
were written before it. A command that comes second starts again from the result of the first. `index.json` is a copy of
the newest generation.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import faiss
from msgspec import Meta

from progeo.atomic import remove_abandoned
from progeo.engine.log import LOGGER
from progeo.evaluation.options import CELLS
from progeo.evaluation.search import save_index
from progeo.files import file_digest, read_json, write_json, write_new_json
from progeo.image_files import Orientation
from progeo.json_files import as_kind
from progeo.localization.confidence import AnyCalibration, ClassCalibration, Verification, calibration_from_json
from progeo.localization.options import IndexOf
from progeo.locks import Lock, NoLocks, try_lock
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue
from progeo.verification.feature_file import FeatureFile, StoredFeatures, open_feature_file, write_feature_file

_FORMAT: Literal[1] = 1
_METADATA = "index.json"
_ADVICE = "Put the file back, or build the index anew; a newer progeo may have more fields."
_GENERATION = re.compile(r"index_([0-9]{1,9})\.json")
_DATA = re.compile(r"places_[0-9a-f]{12}\.faiss")
ENCODER_FOLDER = "model"
CLASSIFIER_FOLDERS = (ENCODER_FOLDER, "classifier")
"""Folders that may hold the classifier of an index of cells: that of its encoder, or one with another network."""
_Positive = Annotated[int, Meta(ge=1, lt=2**31)]
_Natural = Annotated[int, Meta(ge=0, lt=10**9)]
_FaissName = Annotated[str, Meta(pattern=r"^places_[0-9a-f]+\.faiss\Z")]
_CatalogueName = Annotated[str, Meta(pattern=r"^catalogue_[0-9a-f]+\.arrow\Z")]
_FeaturesName = Annotated[str, Meta(pattern=r"^(|features_[0-9a-f]+\.arrow)\Z")]
"""File names as progeo writes them, and no path, which could lead out of the folder."""


@dataclass(frozen=True)
class IndexMetadata:
    """Metadata of a place index, the content of `index.json`."""

    kind: str
    """faiss factory string of the descriptor index, or `cells`."""
    probes: _Positive
    encoder: Mapping[str, Any]
    """Fingerprint of the encoder, see `progeo.features.descriptors.descriptor_metadata`."""
    image_size: tuple[_Positive, _Positive]
    database_preprocessing: Preprocessing
    query_preprocessing: Preprocessing
    images: _Positive
    """Number of rows: of images, or of classes."""
    faiss_file: _FaissName
    """Name of the faiss file in the folder."""
    catalogue_file: _CatalogueName
    """Name of the catalogue file in the folder."""
    features_file: _FeaturesName = ""
    """Name of the file of local features of the images, by row; empty if there is none."""
    calibration: AnyCalibration | None = None
    verification: Verification | None = None
    """How matches are verified; None if that was not calibrated."""
    orientation: Orientation = "exif"
    """Whether images and queries are rotated upright by their EXIF orientation."""
    of: IndexOf = "images"
    cell_side_m: _Natural = 0
    """Side in meters of the cells of classes; 0 for images."""
    scale: Annotated[float, Meta(ge=0, lt=1e15)] = 0.0
    """Factor of the cosines of classes before the softmax; 0 for images."""
    classifier: Annotated[str, Meta(pattern=r"^(|model|classifier)\Z")] = ""
    """Folder of the classifier whose classes are the inverted lists: that of the encoder, or `classifier` with another
    network that ranks them. Empty if lists are no cells."""
    partition: str = ""
    """Fingerprint of the classes of that classifier; empty if lists are no cells."""
    generation: _Natural = 0
    """Number of updates since the index was built."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """`file_digest` of the data files by name, for local features the fingerprint of `FeatureFile`; empty in an index
    of an earlier version."""
    format: Literal[1] = _FORMAT

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
    features_file: str


def new_files(*, features: bool = False) -> DataFiles:
    """Return unique names for the data files of a generation, with or without one of local features."""
    token = secrets.token_hex(6)
    return {
        "faiss_file": f"places_{token}.faiss",
        "catalogue_file": f"catalogue_{token}.arrow",
        "features_file": f"features_{token}.arrow" if features else "",
    }


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
    folder: Path,
    before: IndexMetadata | None,
    metadata: IndexMetadata,
    index: faiss.Index,
    catalogue: Catalogue,
    *,
    features: Iterable[StoredFeatures] | None = None,
) -> bool:
    """Write an index as the next generation, and remove the data files of the previous one.

    Args:
        before: metadata of the generation it was made from; None for a new index.
        metadata: its metadata, with file names of `new_files`.
        features: local features of all images in turn, see `write_feature_file`; None for an index without.

    Returns:
        Whether it became the next generation; if another command came first, nothing is changed.
    """
    lock = _lock_of_data(folder, metadata.faiss_file)
    try:
        save_index(index, folder / metadata.faiss_file)
        catalogue.save(folder / metadata.catalogue_file)
        files = (metadata.faiss_file, metadata.catalogue_file)
        metadata = replace(metadata, digests={name: file_digest(folder / name) for name in files})
        size = f"{(folder / metadata.faiss_file).stat().st_size / 1e6:,.1f} MB"
        if features is not None:
            write_feature_file(file := folder / metadata.features_file, features)
            fingerprint = open_feature_file(file).fingerprint
            metadata = replace(metadata, digests={**metadata.digests, file.name: fingerprint})
            size += f", {file.stat().st_size / 1e6:,.1f} MB of local features"
        if committed := commit(folder, before, metadata):
            LOGGER.info("place index of %s in %s, %s and the encoder", metadata.rows, folder, size)
        return committed
    finally:
        current = read_metadata(folder) if holds_place_index(folder) else None
        for each in (before, metadata):
            if each is not None and (current is None or each.faiss_file != current.faiss_file):
                _remove_data(folder, each.faiss_file)
        if lock is not None:
            lock.release()


def finish_update(folder: Path) -> None:
    """Finish what a command that was killed had begun: publish its generation, or remove its data files."""
    remove_abandoned(folder)
    published = folder / _METADATA
    if _generations(folder) and not (
        published.is_file() and _read(published).generation == read_metadata(folder).generation
    ):
        _publish(folder)
    remove_unused_data(folder)


def remove_unused_data(folder: Path) -> None:
    """Remove data files of commands that were killed before a generation named them."""
    for file in sorted(folder.glob("places_*.faiss")):
        if _DATA.fullmatch(file.name) and (lock := _lock_of_data(folder, file.name)) is not None:
            if file.name not in _faiss_files(folder):
                _remove_data(folder, file.name)
            lock.release()


def _remove_data(folder: Path, faiss_file: str) -> None:
    """Remove the data files of a generation."""
    token = Path(faiss_file).stem.removeprefix("places_")
    for name in (f"features_{token}.arrow", f"catalogue_{token}.arrow", faiss_file):
        (folder / name).unlink(missing_ok=True)  # the faiss file last, as it is what is looked for


def _faiss_files(folder: Path) -> set[str]:
    """Return the faiss files of all generations; one that is removed meanwhile is older than another."""
    found = set()
    for path in (folder / _METADATA, *(_path(folder, each) for each in _generations(folder))):
        with suppress(FileNotFoundError):
            found.add(_read(path).faiss_file)
    return found


def _lock_of_data(folder: Path, faiss_file: str) -> Lock | None:
    """Take the lock of the data files of a generation; None if their writer holds it, or where there are no locks."""
    try:
        return try_lock(folder / f".{Path(faiss_file).stem}.progeo")
    except NoLocks:
        return None


def check_data_files(folder: Path, metadata: IndexMetadata) -> None:
    """Check that the data files of a place index are those that its metadata were written with.

    The content of local features is checked by `open_features`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is a link out of the folder, or has other content.
    """
    for name in filter(None, (metadata.faiss_file, metadata.catalogue_file, metadata.features_file)):
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: put it back, or build the index anew.")
        if file.resolve().parent != folder.resolve():
            raise ValueError(f"{file} leads out of its folder, to {file.resolve()}: put the file itself there.")
        if name != metadata.features_file:
            _check_digest(file, file_digest(file), metadata)


def open_features(folder: Path, metadata: IndexMetadata) -> FeatureFile | None:
    """Open the local features of a place index; None if it has none.

    Raises:
        ValueError: the file is corrupt, of other content, or of another number of images.
    """
    if not metadata.features_file:
        return None
    features = open_feature_file(folder / metadata.features_file)
    _check_digest(features.path, features.fingerprint, metadata)
    if len(features) != metadata.images:
        raise ValueError(
            f"{features.path} has features of {len(features):,} images, and the index has {metadata.images:,}: build "
            f"it anew."
        )
    return features


def _check_digest(file: Path, digest: str, metadata: IndexMetadata) -> None:
    if metadata.digests and metadata.digests.get(file.name) != digest:
        raise ValueError(f"{file} is corrupt: {_METADATA} has the digest of other content. {_ADVICE}")


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
    while published < (newest := max(_generations(folder), default=-1)):
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
    calibration = values.get("calibration")
    if isinstance(calibration, dict):
        calibration = calibration_from_json(calibration, f"The calibration in {path}")
    metadata = as_kind({**values, "calibration": calibration}, IndexMetadata, path, advice=_ADVICE)
    if not metadata.holds_classes == bool(metadata.cell_side_m) == bool(metadata.scale):
        raise ValueError(f"{path} is of {metadata.of}, which its cell_side_m or scale contradicts: put the file back.")
    if metadata.holds_classes and (metadata.features_file or metadata.verification):
        raise ValueError(f"{path} is of {metadata.of}, which cannot be verified: put the file back.")
    if not (metadata.kind == CELLS) == bool(metadata.classifier) == bool(metadata.partition):
        raise ValueError(
            f"The classifier or partition in {path} contradicts its kind, {metadata.kind}: put the file back."
        )
    if calibration is not None and metadata.holds_classes != isinstance(calibration, ClassCalibration):
        raise ValueError(
            f"The calibration in {path} is not one of {metadata.of}: set it to null, and run `progeo index calibrate`."
        )
    verification = metadata.verification
    if verification and (calibration is None or calibration.radius_m != verification.calibration.radius_m):
        raise ValueError(
            f"The verification in {path} does not belong to its calibration: set it to null, and run `progeo index "
            f"calibrate --verify`."
        )
    if path.name not in (_METADATA, _path(path.parent, metadata.generation).name):
        raise ValueError(
            f"{path} has the content of generation {metadata.generation}: remove it, or put the correct one back."
        )
    return metadata
