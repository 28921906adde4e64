"""Options of building a place index; no torch."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import PositiveInt

from progeo.models.options import Preprocessing

IndexOf = Literal["images", "classes", "means"]
"""What the rows of an index are."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """The rows of a place index, and how they are searched."""

    of: IndexOf = "images"
    """Rows of the index. images has one per image of folder; classes one per class of the encoder's classifier, without
    a folder; means one per class of the images of folder, its mean descriptor."""
    query_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of the photos to localize. Takes the values of database_preprocessing."""
    faiss: str = "Flat"
    """faiss factory string of the descriptor index. Flat is exact; IVF1024,Flat is faster to search; OPQ32,IVF1024,PQ32
    is faster and smaller. cells has a list for each class of classifier: a photo is compared with the images of its
    most likely map cells only."""
    probes: PositiveInt = 16
    """Number of inverted lists that a search visits (faiss nprobe). Only an IVF index or one of cells uses it."""
    verify: bool = False
    """Store local features of the images, at most 1,000 or about 100 kB of each, for localize to verify matches with
    and without the images."""
    classifier: str | None = None
    """Folder of an encoder with the classifier whose cells faiss cells searches; it may be another network. null takes
    encoder."""
