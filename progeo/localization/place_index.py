"""A place index: a folder of images with known positions and an encoder, for localizing other photos.

The folder holds `index.json`, which names all other files: a faiss file, the catalogue of the images, and the encoder.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator

from progeo.engine.log import LOGGER
from progeo.evaluation.search import Neighbors, add_to_index, index_neighbors, load_index, map_index
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.descriptors import descriptor_extractor, identity
from progeo.features.extract import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.features.store import ShardedRows
from progeo.localization.confidence import evidence
from progeo.localization.index_folder import About, new_files, read_metadata_of_index, save_generation
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue, open_catalogue
from progeo.places.geographic import degrees_of, positions_m

_MODEL = "model"
_MATCHES = 20
"""Number of matches of a query that its confidence is computed from."""
_DESCRIBED_BY = ("encoder", "image_size", "database_preprocessing", "orientation")
_COLUMNS = ("path", "east", "north", "zone", "heading", "latitude", "longitude")


@dataclass(frozen=True)
class PlaceIndex:
    """An opened place index; its images are read only when it is searched."""

    folder: Path
    about: About
    encoder: Encoder
    catalogue: Catalogue
    """Images by absolute path, with latitude and longitude, NaN where they are unknown."""
    index: faiss.Index

    def extractor(self, preprocessing: Preprocessing, accelerator: Accelerator) -> FeatureExtractor:
        """Build a feature extractor with the encoder, image size and orientation of the index."""
        about = self.about
        images = ImageOptions(image_size=about.image_size, orientation=about.orientation)
        return descriptor_extractor(self.encoder, images, accelerator, preprocessing=preprocessing)

    def search(self, descriptors: np.ndarray, *, least: int = 1) -> Neighbors:
        """Search for descriptors (Q, D); returns at least `least` neighbors and the number that confidence requires."""
        return index_neighbors(self.index, descriptors, max(least, _MATCHES))

    def evidence(self, found: Neighbors, radius_m: float) -> np.ndarray:
        """Compute the confidence features of each of Q queries, (Q, 2); NaN where the top match has no position."""
        rows, distances = found.rows[:, :_MATCHES], found.distances[:, :_MATCHES]
        # The index may return fewer than K matches (-1). Pad with the top match's position and the last valid distance,
        # so that padding never counts as another place.
        last = (rows >= 0).sum(axis=1, keepdims=True) - 1
        distances = np.where(rows < 0, np.take_along_axis(distances, np.maximum(last, 0), axis=1), distances)
        rows = np.where(rows < 0, rows[:, :1], rows)
        (places_m,) = positions_m(self.catalogue.take(np.maximum(rows, 0).ravel()))
        places_m = places_m.reshape(*rows.shape, 2)
        answered = (rows[:, :1] >= 0) & np.isfinite(places_m[:, 0]).all(axis=1, keepdims=True)
        return np.where(answered, evidence(distances, places_m, radius_m), np.nan)

    def confidences(self, found: Neighbors) -> np.ndarray:
        """Return probabilities (Q,) that the first matches are correct; NaN if the index is not calibrated."""
        calibration = self.about.calibration
        if calibration is None:
            return np.full(len(found.rows), np.nan)
        return calibration.confidences(self.evidence(found, calibration.radius_m))


def open_place_index(folder: Path) -> PlaceIndex:
    """Open a place index, memory-mapped.

    Raises:
        FileNotFoundError: there is no index in the folder, or one of its files is missing.
        ValueError: the index is corrupt, or its encoder is not the one that it was built with.
    """
    about = read_metadata_of_index(folder)
    try:
        return _opened(folder, about)
    except (OSError, ValueError):
        if read_metadata_of_index(folder) == about:
            raise
        return open_place_index(folder)  # another command replaced its files meanwhile


def _opened(folder: Path, about: About) -> PlaceIndex:
    for file in (folder / about.faiss_file, folder / about.catalogue_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: put it back, or build the index anew.")
        if file.resolve().parent != folder.resolve():
            raise ValueError(f"{file} leads out of its folder, to {file.resolve()}: put the file itself there.")
    encoder = load_encoder(folder / _MODEL)
    if identity(encoder) != about.encoder:
        raise ValueError(
            f"{folder} was not built with the encoder in {folder / _MODEL}: put that one back, or build it anew."
        )
    catalogue = _open_images(folder / about.catalogue_file, folder)
    index = map_index(folder / about.faiss_file, probes=about.probes)
    if not len(catalogue) == index.ntotal == about.images or index.d != encoder.descriptor_dim:
        raise ValueError(
            f"The files of {folder} do not belong together: {about.images:,} images of {encoder.descriptor_dim} "
            f"dimensions, {len(catalogue):,} in {about.catalogue_file}, {index.ntotal:,} of {index.d} dimensions in "
            f"{about.faiss_file}. Build the index anew."
        )
    return PlaceIndex(folder, about, encoder, catalogue, index)


def _open_images(file: Path, folder: Path) -> Catalogue:
    try:
        catalogue = open_catalogue(file, folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is corrupt: {error}. Put it back, or build the index anew.") from None
    kinds = {field.name: field.type for field in catalogue.table.schema}
    numbers = [kinds.get(name, pa.null()) for name in _COLUMNS[1:]]
    is_number = [pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in numbers]
    if tuple(kinds) != _COLUMNS or kinds["path"] != pa.large_string() or not all(is_number):
        raise ValueError(f"{file} is no catalogue of a place index, it should have {', '.join(_COLUMNS)}.")
    return catalogue


def add_images(opened: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> None:
    """Add images to the current state of a place index.

    Args:
        opened: the index, whose encoder extracted the descriptors.
        images: N images as `placed` returns them.
        descriptors: (N, D); images whose rows are excluded are skipped.

    Raises:
        ValueError: the index was rebuilt meanwhile, with another encoder or other preprocessing.
    """
    while not _added(opened, images, descriptors):
        LOGGER.info("another command changed %s meanwhile: adding to what it holds now", opened.folder)
        before, opened = opened, open_place_index(opened.folder)
        if any(getattr(opened.about, name) != getattr(before.about, name) for name in _DESCRIBED_BY):
            raise ValueError(f"{opened.folder} was built anew meanwhile, and differently: run this command again.")


def _added(opened: PlaceIndex, images: Catalogue, descriptors: ShardedRows) -> bool:
    """Add images to the index as it was opened; returns False if another command has changed it."""
    try:
        index = load_index(opened.folder / opened.about.faiss_file)
    except ValueError:
        if read_metadata_of_index(opened.folder) == opened.about:
            raise
        return False
    new = descriptors.without(held_by(opened, images))
    if not len(new):
        return True
    add_to_index(index, new)
    images = images.take(np.delete(np.arange(len(images)), new.missing))
    table = pa.concat_tables([opened.catalogue.table, images.table])
    about = replace(opened.about, images=len(table), **new_files())
    return save_generation(opened.folder, opened.about, about, index, Catalogue(opened.folder, table))


def held_by(index: PlaceIndex, images: Catalogue) -> np.ndarray:
    """Return the rows of images that an index already holds, by path."""
    held = pc.is_in(images.table["path"], value_set=index.catalogue.table["path"].combine_chunks())
    return np.flatnonzero(held.to_numpy())


def save_model(folder: Path, encoder: Encoder, source: str) -> None:
    """Write the encoder of an index, loaded from `source`."""
    save_encoder(folder / _MODEL, encoder, provenance={"encoder": source}, recalls={})


def placed(catalogue: Catalogue) -> Catalogue:
    """Convert a catalogue for an index: absolute paths, with latitude and longitude, NaN where they are unknown."""
    latitude, longitude = np.full((2, len(catalogue)), np.nan)
    known = has_position(catalogue)
    latitude[known], longitude[known] = degrees_of(catalogue if known.all() else catalogue.take(np.flatnonzero(known)))
    unknown = np.flatnonzero(known & np.isnan(latitude) & (catalogue.zone > 0))
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


def has_position(catalogue: Catalogue) -> np.ndarray:
    """Return which images have a known position, bool (N,)."""
    return np.isfinite(catalogue.east) & np.isfinite(catalogue.north)
