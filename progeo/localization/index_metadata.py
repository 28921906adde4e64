"""Metadata of a place index and of its parts: the content of `index.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from progeo.evaluation.options import CELLS
from progeo.files import read_json
from progeo.image_files import Orientation
from progeo.json_files import as_kind
from progeo.localization.confidence import AnyCalibration, ClassCalibration, Verification, calibration_from_json
from progeo.localization.engines.connecting import EngineMetadata
from progeo.localization.former_format import FormerFiles, former_fields
from progeo.localization.options import IndexOf
from progeo.localization.stored_files import StoredFile
from progeo.models.options import Preprocessing

FORMAT: Literal[2] = 2
ADVICE = "Put the file back, or build the index anew; a newer progeo may have more fields."
EXACT = "Flat"
"""Kind of an index without a faiss file."""
CATALOGUE: Final = "catalogue.arrow"
PATHS: Final = "paths.npy"
DESCRIPTORS: Final = "descriptors.npy"
FAISS: Final = "places.faiss"
FEATURES: Final = "features.arrow"
"""Names of the files of a part."""
_PartFile = Literal["catalogue.arrow", "paths.npy", "descriptors.npy", "places.faiss", "features.arrow"]
_Positive = Annotated[int, Meta(ge=1, lt=2**31)]
_Natural = Annotated[int, Meta(ge=0, lt=2**40)]
_Zone = Annotated[int, Meta(ge=0, le=60)]
_PartName = Annotated[str, Meta(pattern=r"^part_[0-9]{5,9}\Z")]
_PartId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_TrainedName = Annotated[str, Meta(pattern=r"^(|trained_[0-9a-f]{12}\.faiss)\Z")]
_RemovedName = Annotated[str, Meta(pattern=r"^(|removed_[0-9a-f]{12}\.npy)\Z")]
"""File names as progeo writes them, and no path, which could lead out of the folder."""


@dataclass(frozen=True)
class PartMetadata:
    """Metadata of a part: a folder with some rows of the index."""

    name: _PartName
    """Name of its folder."""
    id: _PartId
    """Identifier of its rows: the same for the same encoder and images, and for the same descriptors in an engine."""
    rows: _Positive
    zones: tuple[_Zone, ...]
    """UTM zones of the images with a known position; 0 for those without a zone."""
    num_degrees: _Natural
    """Number of images whose latitude and longitude are known."""
    num_headings: _Natural
    """Number of images whose heading is known."""
    cells: tuple[int, int] | None
    """First and last cell of the images, see `progeo.places.cell_order`; None if no latitude is known."""
    files: Mapping[_PartFile, StoredFile]
    """Its files by name."""

    @property
    def engine_id(self) -> str:
        """Identifier of its rows in an engine, which no other part of the index has."""
        return f"{self.name} {self.id}"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class IndexMetadata:
    """Metadata of a place index, the content of `index.json`."""

    kind: str
    """faiss factory string of the descriptor index, `cells`, or the name of its engine."""
    probes: _Positive
    encoder: Mapping[str, Any]
    """Fingerprint of the encoder, see `progeo.features.descriptors.descriptor_metadata`."""
    image_size: tuple[_Positive, _Positive]
    database_preprocessing: Preprocessing
    query_preprocessing: Preprocessing
    parts: tuple[PartMetadata, ...]
    """The rows are those of the parts, one part after another."""
    trained_file: _TrainedName = ""
    """Name of the file of the trained, empty faiss index that the parts are filled copies of; empty for Flat."""
    trained_on: _Natural = 0
    """Number of rows of the index when it was trained."""
    removed_file: _RemovedName = ""
    """Name of the file of the rows that are removed, sorted; empty if there is none."""
    num_removed: _Natural = 0
    refine: _Natural = 0
    """Number of best rows of a compressed index that are compared exactly."""
    kind_is_default: bool = False
    """Whether the number of rows decided the kind, which `compact` then chooses again."""
    part_rows: _Positive = 1_000_000
    """Maximum number of rows of a part."""
    stores_features: bool = False
    """Whether parts hold local features of their images."""
    engine: EngineMetadata | None = None
    """The engine that holds the descriptors and searches them; None if the parts hold them."""
    calibration: AnyCalibration | None = None
    verification: Verification | None = None
    """How matches are verified; None if that was not calibrated."""
    orientation: Orientation = "exif"
    """Whether images and queries are rotated upright by their EXIF orientation."""
    of: IndexOf = "images"
    cell_side_m: Annotated[int, Meta(ge=0, lt=10**9)] = 0
    """Side in meters of the cells of classes; 0 for images."""
    scale: Annotated[float, Meta(ge=0, lt=1e15)] = 0.0
    """Factor of the cosines of classes before the softmax; 0 for images."""
    classifier: Annotated[str, Meta(pattern=r"^(|model|classifier)\Z")] = ""
    """Folder of the classifier whose classes are the inverted lists: that of the encoder, or `classifier` with another
    network that ranks them. Empty if lists are no cells."""
    partition: str = ""
    """Fingerprint of the classes of that classifier; empty if lists are no cells."""
    generation: Annotated[int, Meta(ge=0, lt=10**9)] = 0
    """Number of updates since the index was built."""
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    """The files that `trained_file` and `removed_file` name."""
    former: FormerFiles | None = None
    """Its data files if it is in format 1, which has no parts; never stored."""
    format: Literal[1, 2] = FORMAT

    @property
    def num_rows(self) -> int:
        """Number of all rows, also of those that are removed."""
        return sum(part.rows for part in self.parts) if self.former is None else self.former.images

    @property
    def images(self) -> int:
        """Number of rows, of images or of classes, that are not removed."""
        return self.num_rows - self.num_removed

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

    @property
    def data_names(self) -> set[str]:
        """Names of the folders of parts, and of other data files."""
        names = {part.name for part in self.parts} | {*filter(None, (self.trained_file, self.removed_file))}
        return names if self.former is None else self.former.names

    def to_json(self) -> dict[str, Any]:
        """Return what `index.json` stores."""
        return {name: value for name, value in asdict(self).items() if name != "former"}


def read_index_metadata(path: Path, generation_name: str) -> IndexMetadata:
    """Read and validate a file of metadata.

    Args:
        generation_name: pattern of the name of a generation, which its number is inserted into.

    Raises:
        ValueError: the file is not as progeo writes it; the message names it.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") not in (1, FORMAT):
        raise ValueError(f"{path} is not a place index in format 1 or {FORMAT}.")
    calibration = values.get("calibration")
    if isinstance(calibration, dict):
        calibration = calibration_from_json(calibration, f"The calibration in {path}")
    values = {**values, "calibration": calibration}
    if values["format"] == 1:
        metadata = IndexMetadata(**former_fields(values, path, advice=ADVICE))
    else:
        metadata = as_kind(values, IndexMetadata, path, advice=ADVICE)
        _check_parts(metadata, path)
    _check_classes(metadata, path)
    verification = metadata.verification
    if verification and (calibration is None or calibration.radius_m != verification.calibration.radius_m):
        raise ValueError(
            f"The verification in {path} does not belong to its calibration: set it to null, and run `progeo index "
            f"calibrate --verify`."
        )
    if path.name not in ("index.json", generation_name.format(metadata.generation)):
        raise ValueError(
            f"{path} has the content of generation {metadata.generation}: remove it, or put the correct one back."
        )
    return metadata


def check_format(metadata: IndexMetadata, folder: Path) -> None:
    """Refuse to change an index of format 1."""
    if metadata.former is not None:
        raise ValueError(f"{folder} is in format 1, which is only searched: run `progeo index compact` first.")


def _check_classes(metadata: IndexMetadata, path: Path) -> None:
    if not metadata.holds_classes == bool(metadata.cell_side_m) == bool(metadata.scale):
        raise ValueError(f"{path} is of {metadata.of}, which its cell_side_m or scale contradicts: put the file back.")
    if metadata.holds_classes and (metadata.stores_features or metadata.verification):
        raise ValueError(f"{path} is of {metadata.of}, which cannot be verified: put the file back.")
    if not (metadata.kind == CELLS) == bool(metadata.classifier) == bool(metadata.partition):
        raise ValueError(
            f"The classifier or partition in {path} contradicts its kind, {metadata.kind}: put the file back."
        )
    calibration = metadata.calibration
    if calibration is not None and metadata.holds_classes != isinstance(calibration, ClassCalibration):
        raise ValueError(
            f"The calibration in {path} is not one of {metadata.of}: set it to null, and run `progeo index calibrate`."
        )


def _check_parts(metadata: IndexMetadata, path: Path) -> None:
    names = [part.name for part in metadata.parts]
    if metadata.former is not None:
        raise ValueError(f"{path} is in format {FORMAT} and has files of format 1: put the file back.")
    if not names or len(set(names)) < len(names) or metadata.num_removed > metadata.num_rows:
        raise ValueError(f"{path} has no parts, a part twice, or more removed rows than rows: put the file back.")
    if {*metadata.files} != {*filter(None, (metadata.trained_file, metadata.removed_file))}:
        raise ValueError(f"The files in {path} are not those that it names: put the file back.")
    if bool(metadata.num_removed) != bool(metadata.removed_file):
        raise ValueError(f"{path} contradicts itself about removed rows: put the file back.")
    if metadata.engine is not None and metadata.trained_file:
        raise ValueError(f"{path} names an engine and a faiss index, which it does not need: put the file back.")
    needed = {CATALOGUE, PATHS} | ({DESCRIPTORS} if metadata.engine is None else set())
    needed |= {FAISS} if metadata.trained_file else set()
    needed |= {FEATURES} if metadata.stores_features else set()
    for part in metadata.parts:
        if {*part.files} != needed:
            raise ValueError(
                f"{part.name} in {path} should have the files {', '.join(sorted(needed))}, got "
                f"{', '.join(sorted(part.files))}: put the file back."
            )
