from dataclasses import dataclass

import numpy as np
import pytest

from progeo.evaluation.kinds import IndexKind
from progeo.localization.building import kind_of
from progeo.localization.options import IndexOptions


@dataclass
class ManyRows:
    """Rows that are too many to be stored."""

    count: int
    width: int = 256

    def __len__(self):
        return self.count

    def take(self, rows):
        return np.zeros((len(rows), self.width), np.float32)

    def parts(self):
        yield from ()


@pytest.mark.parametrize(
    ("options", "count", "kind"),
    [
        (IndexOptions(), 199_999, IndexKind("Flat", 1, 0)),
        (IndexOptions(), 200_000, IndexKind("IVF1024,RaBitQ", 256, 200)),
        (IndexOptions(probes=7, refine=50), 200_000, IndexKind("IVF1024,RaBitQ", 7, 50)),
        (IndexOptions(faiss="Flat"), 10**6, IndexKind("Flat", 16, 0)),
        (IndexOptions(faiss="PQ64", probes=3, refine=40), 10, IndexKind("PQ64", 3, 40)),
    ],
)
def test_an_index_is_of_the_kind_that_is_given_or_fits_its_size(options, count, kind, caplog):
    caplog.set_level("INFO", logger="progeo")
    assert kind_of(options, ManyRows(count)) == kind
    sentence = f"200,000 rows are compressed as IVF1024,RaBitQ: a search visits {kind.probes} lists"
    assert (sentence in caplog.text) == (kind.faiss == "IVF1024,RaBitQ")
