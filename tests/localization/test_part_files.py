"""Parts of a place index: how they are cut, what they hold, and which of them a circle reaches."""

from dataclasses import replace

import faiss
import numpy as np
import pytest
from small_indexes import DIM, images, small_index

from progeo.evaluation.search import save_index
from progeo.localization.index_folder import read_metadata
from progeo.localization.part_files import NewRows, PartFormat, write_part
from progeo.localization.place_index import index_images, open_place_index
from progeo.localization.restriction import Restriction
from progeo.places.catalogue import Catalogue
from progeo.places.nearby import HeadingRange, Near


class Rows:
    """Rows in memory, that must not be asked for all at once."""

    width = DIM

    def __init__(self, values, most=10**9):
        self.values, self.most = values, most

    def __len__(self):
        return len(self.values)

    def take(self, rows):
        assert len(rows) <= self.most
        return self.values[rows]

    def parts(self):
        yield self.values


@pytest.mark.parametrize(
    ("count", "part_rows", "cuts"),
    [(1, 10, [(0, 1)]), (10, 10, [(0, 10)]), (11, 10, [(0, 5), (5, 11)]), (25, 10, [(0, 8), (8, 16), (16, 25)])],
)
def test_rows_are_cut_into_parts_of_about_equal_size(count, part_rows, cuts):
    assert PartFormat({}, None, part_rows).cuts(count) == cuts


@pytest.mark.parametrize(("kind", "row_bytes"), [("Flat", 1024), ("IVF1,Flat", 1024), ("SQ8", 256), ("HNSW8", 1024)])
def test_the_faiss_index_of_a_part_takes_128_mib_at_most(kind, row_bytes, tmp_path):
    index = faiss.index_factory(DIM, kind)
    index.train(np.zeros((1, DIM), np.float32))
    save_index(index, tmp_path / "trained.faiss")
    most = PartFormat({}, tmp_path / "trained.faiss", 10**9).max_rows
    assert most * (row_bytes + 8) <= 2**27 < (most + 1) * (row_bytes + 9)
    assert PartFormat({}, tmp_path / "trained.faiss", 99).max_rows == 99


def test_descriptors_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.localization.part_files._VALUES_AT_ONCE", 3 * DIM)
    table, values = images("a", 8)
    rows = NewRows(Rows(values, most=3), lambda first, last: index_images(Catalogue(tmp_path, table[first:last])))
    (tmp_path / "part_00004").mkdir()
    part = write_part(tmp_path / "part_00004", (1, 8), rows, PartFormat({}, None, 10))
    assert np.load(tmp_path / "part_00004/descriptors.npy").tolist() == values[1:].tolist()
    assert (part.name, part.rows, part.num_degrees, part.num_headings, part.zones) == ("part_00004", 7, 7, 0, (0,))


def test_the_identifier_of_a_part_is_that_of_its_encoder_and_images(tmp_path):
    table, values = images("a", 3)
    found = []
    for number, encoder in enumerate(({"a": 1}, {"a": 1}, {"a": 2})):
        (folder := tmp_path / f"part_{number:05}").mkdir()
        rows = NewRows(Rows(values), lambda first, last: index_images(Catalogue(tmp_path, table[first:last])))
        found.append(write_part(folder, (0, 3 - number // 2), rows, PartFormat(encoder, None, 10)).id)
    assert found[0] == found[1] != found[2]


def test_descriptors_beyond_float16_are_refused_by_a_compressed_index(small_encoder, tmp_path):
    index = faiss.IndexFlatL2(DIM)
    save_index(index, tmp_path / "trained.faiss")
    table, values = images("a", 3)
    values[1, 7] = 70000
    rows = NewRows(Rows(values), lambda first, last: index_images(Catalogue(tmp_path, table[first:last])))
    (tmp_path / "part_00000").mkdir()
    with pytest.raises(ValueError, match="Descriptors have values beyond 65504, which float16 cannot hold"):
        write_part(tmp_path / "part_00000", (0, 3), rows, PartFormat({}, tmp_path / "trained.faiss", 10))


def test_only_parts_that_a_circle_reaches_are_looked_into(small_encoder, tmp_path):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=30, part_rows=10)
    opened = open_place_index(folder)
    cells = [part.cells for part in read_metadata(folder).parts]
    assert cells == sorted(cells) and cells[0][1] < cells[1][0]
    assert opened.store.rows_of(Restriction(Near(10.0095, 20, 120))).tolist() == [9, 10]
    (alone,) = (part for part in opened.parts if len(part.rows_of(Restriction(Near(10.025, 20, 60)))))
    blind = [replace(part, images=None) for part in opened.parts if part is not alone]
    assert [len(part.rows_of(Restriction(Near(10.025, 20, 60)))) for part in blind] == [0, 0]


def test_a_count_leaves_removed_rows_out(small_encoder, tmp_path):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=30, part_rows=10)
    store = replace(open_place_index(folder).store, removed=np.array([3, 9, 29]))
    assert store.count() == 27
    assert store.count(Restriction(Near(10.0095, 20, 120))) == 1
    found = store.search(images("a", 30)[1][[9, 10]], 40, probes=1, refine=0)
    assert found.rows.shape == (2, 27) and not {3, 9, 29} & {*found.rows.ravel().tolist()}
    circles = [Restriction(Near(10.0095, 20, 120)), Restriction(Near(0, 0, 5))]
    assert store.search(images("a", 2)[1], 3, probes=1, refine=0, among=circles).rows.tolist() == [
        [10, -1, -1],
        [-1, -1, -1],
    ]
    with pytest.raises(ValueError, match=r"`heading` cannot be used: no heading is known in .*index\. Leave it out"):
        store.count(Restriction(heading=HeadingRange(0, 30)))
