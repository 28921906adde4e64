"""Names of images in a table, such as those of the streets they show, and the most frequent name of each class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.datasets.readers.table_columns import read_image_texts
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class ImageNames:
    """Names of images, one for each of n rows of a table; rows without a name or an image are left out."""

    rows: np.ndarray
    """Catalogue rows, int64 (n,)."""
    codes: np.ndarray
    """Indices of their names, int64 (n,)."""
    names: list[str]
    """All names, in alphabetical order."""

    def of_classes(self, rows: np.ndarray, labels: np.ndarray, num_classes: int) -> list[str]:
        """Return the most frequent name of each class, of equally frequent ones the first, and "" without any.

        Args:
            rows: catalogue rows of the images of the classes, int64 (N,).
            labels: class label of each image, int64 (N,).
        """
        words = [""] * num_classes
        if not len(rows) or not len(self.rows):
            return words
        order = np.argsort(rows)
        places = np.minimum(np.searchsorted(rows, self.rows, sorter=order), len(rows) - 1)
        found = rows[order[places]] == self.rows
        pairs = np.stack([labels[order[places[found]]], self.codes[found]], axis=1)
        different, counts = np.unique(pairs, axis=0, return_counts=True)
        labels, codes = different.T
        best = np.lexsort((codes, -counts, labels))
        first = np.flatnonzero(np.diff(labels[best], prepend=-1))
        for label, code in zip(labels[best[first]].tolist(), codes[best[first]].tolist(), strict=True):
            words[label] = self.names[code]
        return words


def read_image_names(file: Path, catalogue: Catalogue, column: str) -> ImageNames:
    """Read the names of images from a column of a table.

    Args:
        file: .csv, .tsv, .parquet or .geojson with a column of paths, such as `path` or `image`.
        catalogue: the images, whose paths the table has.
        column: name of the column of names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing, or no image of the catalogue is named.
    """
    paths, texts = read_image_texts(file, catalogue.folder, column)
    rows = pc.index_in(paths, value_set=catalogue.table["path"].combine_chunks())
    known = pc.and_(pc.is_valid(rows), pc.not_equal(texts, ""))
    if not pc.any(known).as_py():
        raise ValueError(
            f"{file} names no image of {catalogue.folder}: its first path is {paths[0]}, with the {column} "
            f"{texts[0].as_py()!r}, and the first image is {catalogue.name(0)}."
        )
    dictionary = texts.filter(known).combine_chunks().dictionary_encode()
    order = pc.sort_indices(dictionary.dictionary).to_numpy()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return ImageNames(
        rows.filter(known).to_numpy().astype(np.int64),
        rank[dictionary.indices.to_numpy()].astype(np.int64),
        dictionary.dictionary.take(pa.array(order)).to_pylist(),
    )
