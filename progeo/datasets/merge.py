"""Merge catalogues into one whose images have places: by name where they have some, else by cells."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue, are_absolute
from progeo.places.cells import build_partition
from progeo.places.geographic import degrees_of, frame_of
from progeo.places.options import CellOptions
from progeo.remote_files import is_remote, name_in, shared_folder

_OF_CELLS = "cells"
"""First part of the names of places of cells."""
_NUMBERS = {"east": pa.float64(), "north": pa.float64(), "zone": pa.int8(), "heading": pa.float64()}
TEXTS = ("condition", "time", "place")
"""Columns of texts that merged catalogues keep."""
_HERE = ("", ".")


def merge_catalogues(catalogues: Sequence[Catalogue], cells: CellOptions) -> Catalogue:
    """Merge catalogues of training images, each with the zones that it has.

    The name of a place gets the path of its folder in front. Images without the column `place` are divided into cells
    together, see `build_partition`: their places are called cells/GROUP/ZONE_EAST_NORTH_HEADING, so that those of a
    region, cells/GROUP, never touch. The zone is 0 if they lie in several. Images of no such class are excluded.

    Args:
        cells: how images without a place are divided.

    Raises:
        ValueError: images are there twice, or cannot be divided into cells.
    """
    folders = [catalogue.folder.resolve() for catalogue in catalogues]
    root = shared_folder(folders)
    tables = [
        table_below(each, name_in(root, folder), degrees=degrees_of(each))
        for each, folder in zip(catalogues, folders, strict=True)
    ]
    named = [table for table in tables if "place" in table.column_names]
    nameless = [table for table in tables if "place" not in table.column_names]
    if nameless:
        named.append(_with_cells(Catalogue(root, _together(nameless)), cells))
    table = _together(named)
    if twice := len(table) - pc.count_distinct(table["path"]).as_py():
        raise ValueError(f"{twice:,} images are in the given folders twice: name folders that share none.")
    return Catalogue(root, table)


def table_below(catalogue: Catalogue, below: str, *, degrees: np.ndarray) -> pa.Table:
    """Return the columns of a catalogue that merged ones have, with paths and places relative to a root.

    Args:
        below: name of the folder of the images in the root, see `name_in`.
        degrees: latitude and longitude, (2, N); without columns for them if all are NaN.
    """
    held, text = catalogue.table, pa.large_string()
    columns = {"path": _paths_below(catalogue, below)}
    columns |= {name: held[name].cast(kind) for name, kind in _NUMBERS.items()}
    if np.isfinite(degrees).any():
        columns |= {name: pa.array(each) for name, each in zip(("latitude", "longitude"), degrees, strict=True)}
    columns |= {name: held[name].cast(text) for name in TEXTS if name in held.column_names}
    if "place" in columns:
        is_named = pc.not_equal(pc.fill_null(columns["place"], ""), "")
        named = _below(catalogue.folder.resolve().name if below in _HERE else below, columns["place"])
        columns["place"] = pc.if_else(is_named, named, "")
    return pa.table(columns)


def _paths_below(catalogue: Catalogue, below: str) -> pa.ChunkedArray:
    """Return the paths of images relative to a root, in which their folder has the given name, see `name_in`."""
    names = catalogue.table["path"].cast(pa.large_string())
    return catalogue.full_paths() if is_remote(below) else pc.if_else(are_absolute(names), names, _below(below, names))


def _with_cells(catalogue: Catalogue, cells: CellOptions) -> pa.Table:
    """Return the images of the classes of a catalogue, in their order, with their classes as places."""
    partition, zone = build_partition(catalogue, **vars(cells)), frame_of(catalogue).zone
    names: list[str] = []
    labels = np.full(len(catalogue), -1)
    for index, group in enumerate(partition.groups):
        labels[group.rows] = len(names) + group.labels
        names += [f"{_OF_CELLS}/{index}/{'_'.join(map(str, [zone, *ids]))}" for ids in group.class_ids.tolist()]
    places = pa.array(names, pa.large_string()).take(pa.array(labels, mask=labels < 0))
    return catalogue.table.append_column("place", places).filter(pc.is_valid(places))


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _below(folder: str, names: pa.ChunkedArray) -> pa.ChunkedArray:
    if folder in _HERE:
        return names
    text = pa.large_string()
    return pc.binary_join_element_wise(pa.scalar(folder, text), names.cast(text), pa.scalar("/", text))
