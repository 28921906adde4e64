"""Parquet data sets: folders of files, read batch by batch."""

import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progeo.commands.dataset_import import import_dataset
from progeo.datasets.readers import mapped_tables, table_files
from progeo.datasets.readers.mapped_tables import filtered, joined, pieces_of
from progeo.datasets.readers.table_files import read_columns
from progeo.datasets.readers.tables import read_table
from progeo.places.catalogue import read_catalogue


def rows(first, count, **more):
    numbers = np.arange(first, first + count)
    names = [f"{number}.jpg" for number in numbers]
    return pa.table({"photo": names, "lat": 52.5 + numbers / 1e4, "lon": np.full(count, 13.4), **more})


@pytest.fixture
def parquet(tmp_path):
    for year, first in ((2019, 0), (2020, 3)):
        (tmp_path / f"set/year={year}").mkdir(parents=True)
        pq.write_table(rows(first, 3), tmp_path / f"set/year={year}/part-0.parquet")
        (tmp_path / f"images/{year}").mkdir(parents=True)
        for number in range(first, first + 3):
            (tmp_path / f"images/{year}/{number}.jpg").touch()
    (tmp_path / "set/_SUCCESS").touch()
    return tmp_path / "set"


@pytest.fixture(params=[False, True], ids=["in memory", "mapped"])
def small_pieces(request, monkeypatch, tmp_path):
    """Tables of more than 3 rows are mapped files, made of pieces of 2 rows."""
    if request.param:
        monkeypatch.setattr(mapped_tables, "ROWS_AT_ONCE", 2)
        monkeypatch.setattr(mapped_tables, "_ROWS_IN_MEMORY", 3)
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return request.param


def test_a_folder_of_files_is_one_table_whose_folders_are_a_column(small_pieces, parquet, tmp_path):
    import_dataset("table", parquet, images=tmp_path / "images", path="{year}/{photo}", out=tmp_path / "city")
    catalogue = read_catalogue(tmp_path / "city")
    names = [f"{2019 + number // 3}/{number}.jpg" for number in range(6)]
    assert catalogue.table["path"].to_pylist() == names
    pq.write_table(pa.table({**rows(0, 6).to_pydict(), "photo": names}), tmp_path / "one.parquet")
    one = read_table(tmp_path / "one.parquet", tmp_path / "images", columns={"path": "photo"})
    assert np.isnan(catalogue.heading).all()
    assert catalogue.table.drop_columns("heading").equals(one.table.drop_columns("heading"))
    if small_pieces:
        assert not list((tmp_path / "scratch").iterdir())


def test_files_may_hold_texts_in_any_form(parquet):
    pq.write_table(rows(6, 2, city=pa.array(["a", "b"]).dictionary_encode()), parquet / "year=2020/part-1.parquet")
    pq.write_table(rows(8, 2, city=pa.array(["c", "d"], pa.large_string())), parquet / "year=2020/part-2.parquet")
    pq.write_table(rows(10, 1, city=["e"]), parquet / "year=2020/part-3.parquet")
    assert read_columns(parquet, {"city"})["city"].to_pylist() == [None] * 6 + ["a", "b", "c", "d", "e"]


def test_the_file_of_a_large_table_has_no_name_that_a_killed_process_would_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(mapped_tables, "_ROWS_IN_MEMORY", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = []

    def pieces():
        for number in range(3):
            yield rows(3 * number, 3)
            names.extend(tmp_path.iterdir())

    assert joined(pieces())["photo"].to_pylist() == [f"{number}.jpg" for number in range(9)]
    assert names == []


def test_values_of_folders_are_texts_unchanged(tmp_path):
    for month, more in (("01", {}), ("10", {"day": [7]})):
        (tmp_path / f"a=b/set/month={month}/day=05").mkdir(parents=True)
        pq.write_table(rows(0, 1, **more), tmp_path / f"a=b/set/month={month}/day=05/part-0.parquet")
    table = read_columns(tmp_path / "a=b/set", {"city"})
    assert table["month"].to_pylist() == ["01", "10"]
    assert table["day"].to_pylist() == [None, 7]
    assert "a" not in table.column_names


def test_texts_repeated_endlessly_are_not_read(parquet, monkeypatch):
    size = sum(file.stat().st_size for file in parquet.rglob("*.parquet"))
    monkeypatch.setattr(table_files, "_MIN_MEMORY", 0)
    assert len(read_columns(parquet, {"city"})) == 6
    pq.write_table(rows(6, 1000, city=["x" * size] * 1000), parquet / "year=2020/part-1.parquet")
    with pytest.raises(ValueError, match=r"set cannot be read: it would take [0-9,]+ bytes of memory, far more than"):
        read_columns(parquet, {"city"})


def test_rows_without_a_position_are_skipped_in_every_piece(small_pieces, parquet, tmp_path):
    latitude = pa.array([None, 52.5, 52.5, None, 52.5], pa.float64())
    pq.write_table(rows(6, 5).set_column(1, "lat", latitude), parquet / "year=2020/part-1.parquet")
    for number in range(6, 11):
        (tmp_path / f"images/2020/{number}.jpg").touch()
    catalogue = read_table(parquet, tmp_path / "images", path="{year}/{photo}")
    kept = [0, 1, 2, 3, 4, 5, 7, 8, 10]
    assert catalogue.table["path"].to_pylist() == [f"{2019 + (number >= 3)}/{number}.jpg" for number in kept]


def test_a_column_that_only_some_files_have_is_blank_in_the_others(parquet, tmp_path):
    pq.write_table(rows(3, 3, heading=[10.0, 20.0, 30.0]), parquet / "year=2020/part-0.parquet")
    catalogue = read_table(parquet, tmp_path / "images", path="{year}/{photo}")
    np.testing.assert_array_equal(catalogue.heading, [np.nan] * 3 + [10, 20, 30])


def test_a_row_without_what_its_path_is_made_of_is_named_by_its_number_in_all(small_pieces, parquet, tmp_path):
    table = rows(3, 3).set_column(0, "photo", pa.array(["3.jpg", None, "5.jpg"]))
    pq.write_table(table, parquet / "year=2020/part-0.parquet")
    with pytest.raises(ValueError, match="row 5 has no photo, which its path is made of"):
        read_table(parquet, tmp_path / "images", path="{year}/{photo}")
    with pytest.raises(ValueError, match="row 5 has no path"):
        read_table(parquet, tmp_path / "images", columns={"path": "photo"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "a folder of .parquet files, and there is none in it"),
        (lambda folder: (folder / "a.parquet").write_bytes(b"PAR1nonsense"), "cannot be read"),
        (
            lambda folder: pq.write_table(pa.table({"name": ["a"], "x": [1]}), folder / "a.parquet"),
            "needs a column path; its first line names name, x",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused(make, words, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path, tmp_path)


def test_pieces_make_up_the_table(small_pieces):
    table = pa.table({"number": list(range(7)), "text": list("abcdefg")})
    assert joined(pieces_of(table)).equals(table)
    keep = np.array([1, 0, 0, 0, 1, 1, 1], bool)
    assert filtered(table, keep).to_pydict() == {"number": [0, 4, 5, 6], "text": list("aefg")}
    assert filtered(table, ~keep).to_pydict() == {"number": [1, 2, 3], "text": list("bcd")}
