"""Known paths are found by their hashes."""

import numpy as np
import pyarrow as pa
import pytest

from progeo.localization.path_table import hashes_of, open_path_table, rows_of_hashes, write_path_table


def texts(*values):
    return pa.chunked_array([pa.array(values[:2], pa.large_string()), pa.array(values[2:], pa.large_string())])


def test_each_path_is_found_at_its_row_and_no_other(tmp_path):
    paths = texts(*(f"/city/{row * 7919 % 1000}.jpg" for row in range(1000)))
    write_path_table(tmp_path / "paths.npy", paths)
    table = open_path_table(tmp_path / "paths.npy", 1000)
    assert (np.diff(table[0].astype(object)) > 0).all()
    asked = hashes_of(texts("/city/5.jpg", "/elsewhere/5.jpg", "/city/7.jpg", "/city/5.jpg"))
    wanted, rows = rows_of_hashes(table, asked)
    row_of = {path: row for row, path in enumerate(paths.to_pylist())}
    expected = [(0, row_of["/city/5.jpg"]), (2, row_of["/city/7.jpg"]), (3, row_of["/city/5.jpg"])]
    assert list(zip(wanted.tolist(), rows.tolist(), strict=True)) == expected


def test_all_rows_of_equal_hashes_are_returned(tmp_path):
    write_path_table(tmp_path / "paths.npy", texts("b", "a", "b", "c"))
    wanted, rows = rows_of_hashes(open_path_table(tmp_path / "paths.npy", 4), hashes_of(texts("b", "x")))
    assert (wanted.tolist(), rows.tolist()) == ([0, 0], [0, 2])


def test_a_slice_of_paths_and_characters_of_several_bytes_have_the_hashes_of_the_texts():
    paths = texts("é", "", "/a\n", "/ü/ß.jpg")
    assert hashes_of(paths.slice(1, 3)).tolist() == hashes_of(paths)[1:].tolist()
    assert len(set(hashes_of(paths).tolist())) == 4
    assert len(hashes_of(texts())) == 0


@pytest.mark.parametrize("values", [np.zeros((2, 3), np.uint64), np.zeros((2, 4)), np.zeros(8, np.uint64)])
def test_a_table_of_another_shape_or_type_is_refused(values, tmp_path):
    np.save(tmp_path / "paths.npy", values)
    with pytest.raises(ValueError, match=r"paths.npy holds .*, not uint64 \(2, 4\): build the index anew"):
        open_path_table(tmp_path / "paths.npy", 4)
