"""A place index: images whose places are known and an encoder, in a folder that finds where other photos were taken.

The folder holds `index.json`, which names all else: a faiss file, the catalogue of its images, and the encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.confidence import Calibration, evidence
from progeo.evaluation.search import Neighbours, index_neighbours, map_index, save_index
from progeo.export.weights import load_encoder, save_encoder
from progeo.files import read_json, write_json
from progeo.models.encoder import Encoder
from progeo.models.preprocessing import Preprocessing
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue, open_catalogue, positions_m
from progeo.places.geographic import degrees_of
from progeo.stages.described import Describer
from progeo.stages.encoder_descriptors import encoder_describer, identity

_FORMAT = 1
_ABOUT = "index.json"
_MODEL = "model"
_MATCHES = 20
"""Of a photo, that confidence is taken from."""


@dataclass(frozen=True)
class About:
    """What `index.json` says."""

    kind: str
    """How descriptors are kept, as faiss writes it."""
    probes: int
    encoder: Mapping[str, Any]
    """What all descriptors were made with, see `identity`."""
    image_size: tuple[int, int]
    database_preprocessing: Preprocessing
    query_preprocessing: Preprocessing
    images: int = 0
    faiss_file: str = ""
    catalogue_file: str = ""
    calibration: Mapping[str, Any] | None = None
    """The fields of a `Calibration`."""
    orientation: Orientation = "exif"
    """Whether images and photos are turned upright."""
    format: int = _FORMAT


@dataclass(frozen=True)
class PlaceIndex:
    """An opened place index; nothing of its images is read before it is searched."""

    folder: Path
    about: About
    encoder: Encoder
    catalogue: Catalogue
    """Its images by whole paths, with latitude and longitude, NaN where they are unknown."""
    index: faiss.Index

    @property
    def calibration(self) -> Calibration | None:
        """None where none was made."""
        return None if self.about.calibration is None else Calibration(**self.about.calibration)

    def describer(self, preprocessing: Preprocessing, accelerator: Accelerator) -> Describer:
        """What describes images as those of the index were described."""
        about = self.about
        return encoder_describer(
            self.encoder, preprocessing, about.image_size, accelerator, orientation=about.orientation
        )

    def search(self, descriptors: np.ndarray, *, least: int = 1) -> Neighbours:
        """The images nearest to descriptors (Q, D), at least as many as confidence is taken from and as `least`."""
        return index_neighbours(self.index, descriptors, max(least, _MATCHES))

    def evidence(self, found: Neighbours, radius_m: float) -> np.ndarray:
        """What speaks for the first match of each of Q photos, (Q, 2); NaN where nothing was found."""
        rows, distances = found.rows[:, :_MATCHES], found.distances[:, :_MATCHES]
        answered = rows[:, 0] >= 0
        # An index may find fewer: nothing is somewhere else then, and as far as the last of them.
        last = (rows >= 0).sum(axis=1, keepdims=True) - 1
        distances = np.where(rows < 0, np.take_along_axis(distances, np.maximum(last, 0), axis=1), distances)
        rows = np.where(rows < 0, rows[:, :1], rows)
        (places_m,) = positions_m(self.catalogue.take(np.maximum(rows, 0).ravel()))
        speaking = evidence(distances, places_m.reshape(*rows.shape, 2), radius_m)
        return np.where(answered[:, None], speaking, np.nan)

    def confidences(self, found: Neighbours) -> np.ndarray:
        """Probabilities (Q,) that the first matches were taken near enough; NaN where that is not known."""
        if self.calibration is None:
            return np.full(len(found.rows), np.nan)
        return self.calibration.confidences(self.evidence(found, self.calibration.radius_m))


def open_place_index(folder: Path) -> PlaceIndex:
    """Open a place index, mapped into memory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or its encoder is not the one that it was built with.
    """
    if not holds_place_index(folder):
        raise FileNotFoundError(f"There is no place index in {folder}: make one with `progeo index build`.")
    values = read_json(folder / _ABOUT)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"{folder / _ABOUT} is not a place index in format {_FORMAT}.")
    about = About(**{**values, "image_size": tuple(values["image_size"])})
    encoder = load_encoder(folder / _MODEL)
    if identity(encoder) != about.encoder:
        raise ValueError(
            f"{folder} was not built with the encoder in {folder / _MODEL}: put that one back, or build it anew."
        )
    catalogue = open_catalogue(folder / about.catalogue_file, folder)
    index = map_index(folder / about.faiss_file, probes=about.probes)
    return PlaceIndex(folder, about, encoder, catalogue, index)


def holds_place_index(folder: Path) -> bool:
    """Whether there is one."""
    return (folder / _ABOUT).is_file()


def save_place_index(folder: Path, about: About, index: faiss.Index, catalogue: Catalogue) -> None:
    """Write what an index holds, then `index.json`, which makes it hold that, and remove what it held before."""
    count = len(catalogue)
    changed = replace(
        about, images=count, faiss_file=f"places_{count}.faiss", catalogue_file=f"catalogue_{count}.arrow"
    )
    save_index(index, folder / changed.faiss_file)
    catalogue.save(folder / changed.catalogue_file)
    write_about(folder, changed)
    for before, now in ((about.faiss_file, changed.faiss_file), (about.catalogue_file, changed.catalogue_file)):
        if before not in ("", now):
            (folder / before).unlink()
    megabytes = (folder / changed.faiss_file).stat().st_size / 1e6
    LOGGER.info("place index of %s images in %s, %.1f MB and the encoder", f"{count:,}", folder, megabytes)


def write_about(folder: Path, about: About) -> None:
    """Write `index.json`."""
    write_json(folder / _ABOUT, asdict(about))


def save_model(folder: Path, encoder: Encoder, source: str) -> None:
    """Write the encoder of an index that was loaded from `source`."""
    save_encoder(folder / _MODEL, encoder, provenance={"encoder": source}, recalls={})


def placed(catalogue: Catalogue) -> Catalogue:
    """Images as an index keeps them: by whole paths, with latitude and longitude.

    Raises:
        ValueError: an image has no position.
    """
    if not (np.isfinite(catalogue.east).all() and np.isfinite(catalogue.north).all()):
        raise ValueError(f"The images of {catalogue.folder} have no positions: a place index needs them.")
    latitude, longitude = degrees_of(catalogue)
    unknown = np.flatnonzero(np.isnan(latitude) & (catalogue.zone > 0))
    if len(unknown):
        LOGGER.warning(
            "latitude and longitude of %d of %d images are unknown, the first is %s: no letter of a band tells the "
            "hemisphere, or it contradicts the northing",
            len(unknown),
            len(catalogue),
            catalogue.name(int(unknown[0])),
        )
    folder, nothing = (pa.scalar(text, pa.large_string()) for text in (f"{catalogue.folder.resolve()}/", ""))
    paths = catalogue.table["path"].cast(pa.large_string())
    joined = pc.binary_join_element_wise(folder, paths, nothing)
    whole = pc.if_else(pc.starts_with(paths, "/"), paths, joined)
    columns = {name: catalogue.table[name] for name in ("east", "north", "zone", "heading")}
    table = pa.table({"path": whole, **columns, "latitude": latitude, "longitude": longitude})
    return Catalogue(catalogue.folder, table.combine_chunks())
