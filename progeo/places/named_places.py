"""Places by name: the images of each place of a catalogue that has the column `place`, as of GSV-Cities."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class NamedPlaces:
    """The places of a catalogue that have enough images. The label of a place is its index in `names`."""

    names: pa.Array
    """Sorted names, texts (P,)."""
    rows: np.ndarray
    """Catalogue rows of the images, sorted by place, int64 (n,)."""
    offsets: np.ndarray
    """The images of label p are `rows[offsets[p]:offsets[p + 1]]`, int64 (P + 1,)."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def regions(self) -> np.ndarray:
        """The region of each place, int64 (P,) from 0: what its name says before the last slash, such as its city."""
        parents = pc.replace_substring_regex(self.names, "/?[^/]*$", "")
        return parents.dictionary_encode().indices.to_numpy().astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and the rows of all places."""
        digest = hashlib.sha256("\n".join(self.names.to_pylist()).encode())
        for values in (self.rows, self.offsets):
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def named_places(catalogue: Catalogue, *, min_images: int) -> NamedPlaces:
    """Find the places of a catalogue by its column `place`; images without a name there are of none.

    Raises:
        ValueError: there is no such column, or no place has enough images.
    """
    places = catalogue.places
    if places is None:
        raise ValueError(
            f"{catalogue.folder} has no column of places: import it with `progeo dataset import gsv-cities`, or make "
            f"places of cells with `progeo dataset merge`."
        )
    names, codes = places.dictionary, places.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    counts[pc.equal(names, "").to_numpy(zero_copy_only=False)] = 0
    by_name = pc.sort_indices(names).to_numpy()
    kept = by_name[counts[by_name] >= min_images]
    if not len(kept):
        raise ValueError(
            f"No place of {catalogue.folder} has `min_images_per_class` = {min_images} images, one has "
            f"{counts.max(initial=0)}: lower it."
        )
    labels = np.full(len(names), len(kept))  # of excluded places: behind all others
    labels[kept] = np.arange(len(kept))
    rows = np.argsort(labels[codes], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts[kept])])
    return NamedPlaces(names.take(pa.array(kept)), rows[: offsets[-1]], offsets)
