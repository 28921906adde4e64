"""Small place indexes of images that do not exist, whose descriptors tell whose they are."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa

from progeo.export.weights import load_encoder
from progeo.features.descriptors import descriptor_metadata
from progeo.features.store import ShardedRows
from progeo.localization.adding import add_images
from progeo.localization.building import rows_in_cell_order, write_index
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.place_index import located_images, open_place_index
from progeo.places.catalogue import Catalogue
from progeo.verification.feature_file import to_store

DIM = 256


def images(prefix, count):
    """Images of an index and their descriptors, of which every one says whose it is."""
    east, nothing = np.arange(count, dtype=float), np.full(count, np.nan)
    numbers = {"east": east, "north": east, "zone": np.zeros(count, np.int8), "heading": nothing}
    numbers |= {"latitude": 10 + east / 1000, "longitude": np.full(count, 20.0)}  # 111 m apart
    table = pa.table({"path": pa.array([f"{prefix}{row}.jpg" for row in range(count)], pa.large_string()), **numbers})
    first = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}[prefix]
    return table, np.stack([np.full(count, first), east, *np.zeros((DIM - 2, count))], axis=1).astype(np.float32)


def stored(folder, values):
    rows = ShardedRows(folder, num_rows=len(values), width=DIM, shard_size=len(values), dtype="float32")
    rows.write_shard(0, values)
    return rows


def small_index(folder, encoder, tmp_path, *, count=3, features=None, root=None, **settings):
    """Build an index of images a0, a1, ... in a folder `root`, or that of the index."""
    shutil.copytree(encoder, folder / "model")
    table, values = images("a", count)
    metadata = IndexMetadata(
        kind=settings.pop("kind", "Flat"),
        probes=1,
        encoder=descriptor_metadata(load_encoder(folder / "model")),
        image_size=(48, 48),
        database_preprocessing="hard_resize",
        query_preprocessing="hard_resize",
        stores_features=features is not None,
        parts=(),
        **settings,
    )
    rows = rows_in_cell_order(located_images(Catalogue(root or folder, table)), stored(tmp_path / "rows", values))
    if features is not None:
        rows = replace(rows, features=lambda first, last: map(to_store, features[first:last]))
    assert write_index(folder, metadata, rows)
    return folder


def add(opened, tmp_path, prefix, count=2):
    table, values = images(prefix, count)
    add_images(opened, located_images(Catalogue(opened.folder, table)), stored(tmp_path / f"rows_{prefix}", values))


def contents(folder):
    """The descriptors that an index finds by the names of its images, and that no other file lies beside its own."""
    opened = open_place_index(folder)
    names = [name.rpartition("/")[2] for name in opened.catalogue.table["path"].to_pylist()]
    values = np.concatenate([part.descriptors for part in opened.parts])
    found = opened.store.search(values, 1, probes=1, refine=0).rows[:, 0]
    kept = np.setdiff1d(np.arange(len(names)), opened.removed)
    assert found[kept].tolist() == kept.tolist()
    metadata = opened.metadata
    generation = {f"index_{metadata.generation}.json"} if metadata.generation else set()
    names_there = {path.name for path in folder.iterdir()}
    assert names_there == {"index.json", "model", *metadata.data_names, *generation}, names_there
    kept_names = [names[row] for row in kept]
    assert len(set(kept_names)) == len(kept_names) == metadata.images
    return dict(zip(kept_names, values[kept, :2].tolist(), strict=True))


def expected(**counts):
    first = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    return {f"{name}{row}.jpg": [first[name], row] for name, count in counts.items() for row in range(count)}
