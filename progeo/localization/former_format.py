"""Format 1 of place indexes: one faiss file and one catalogue. It is searched, and converted by `compact`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from progeo.evaluation.kinds import Restored
from progeo.files import file_digest
from progeo.image_files import Orientation
from progeo.json_files import as_kind
from progeo.localization.confidence import AnyCalibration, Verification
from progeo.localization.options import IndexOf
from progeo.localization.stored_files import OTHER_CONTENT, check_present, corrupt
from progeo.models.options import Preprocessing

_Positive = Annotated[int, Meta(ge=1, lt=2**31)]
_Natural = Annotated[int, Meta(ge=0, lt=10**9)]


@dataclass(frozen=True)
class FormerFiles:
    """The data files of an index of format 1."""

    images: _Positive
    """Number of rows."""
    faiss_file: Annotated[str, Meta(pattern=r"^places_[0-9a-f]+\.faiss\Z")]
    catalogue_file: Annotated[str, Meta(pattern=r"^catalogue_[0-9a-f]+\.arrow\Z")]
    features_file: Annotated[str, Meta(pattern=r"^(|features_[0-9a-f]+\.arrow)\Z")] = ""
    """Name of the file of local features; empty if there is none."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """`file_digest` of the files by name, of local features the fingerprint; empty in an index of an early version."""

    @property
    def names(self) -> set[str]:
        """Names of the files."""
        return {*filter(None, (self.faiss_file, self.catalogue_file, self.features_file))}


@dataclass(frozen=True, kw_only=True)
class _FormerMetadata(FormerFiles):
    """The content of `index.json` in format 1."""

    kind: str
    probes: _Positive
    encoder: Mapping[str, Any]
    image_size: tuple[_Positive, _Positive]
    database_preprocessing: Preprocessing
    query_preprocessing: Preprocessing
    calibration: AnyCalibration | None = None
    verification: Verification | None = None
    orientation: Orientation = "exif"
    of: IndexOf = "images"
    cell_side_m: _Natural = 0
    scale: Annotated[float, Meta(ge=0, lt=1e15)] = 0.0
    classifier: Annotated[str, Meta(pattern=r"^(|model|classifier)\Z")] = ""
    partition: str = ""
    generation: _Natural = 0
    format: Literal[1] = 1


def former_fields(values: Mapping[str, Any], path: Path, *, advice: str) -> dict[str, Any]:
    """Convert the values of an `index.json` of format 1 to fields of `IndexMetadata`.

    Raises:
        ValueError: they are not as progeo wrote them; the message names the file.
    """
    former = as_kind(values, _FormerMetadata, path, advice=advice)
    found = {each.name: getattr(former, each.name) for each in fields(former)}
    files = FormerFiles(**{each.name: found.pop(each.name) for each in fields(FormerFiles)})
    return {**found, "parts": (), "stores_features": bool(files.features_file), "former": files}


def check_former_files(folder: Path, files: FormerFiles) -> None:
    """Check that the data files are those that the metadata were written with, but for local features.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is a link out of the folder, or has other content.
    """
    for name in sorted(files.names):
        check_present(folder / name, folder)
        if name != files.features_file and files.digests and files.digests.get(name) != file_digest(folder / name):
            raise corrupt(folder / name, OTHER_CONTENT)


@dataclass(frozen=True, eq=False)
class FormerRows(Restored):
    """Descriptors as a faiss index restores them; whether it does is seen when they are read."""

    def __post_init__(self) -> None:
        """Open an index that restores none, too: it can be searched."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Restore rows, float32 (n, D).

        Raises:
            ValueError: an index of this kind restores none.
        """
        return self._restored[rows]

    @cached_property
    def _restored(self) -> Restored:
        return Restored(self.index)
