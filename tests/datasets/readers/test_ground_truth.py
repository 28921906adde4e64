"""Ground truth of other programs in the files that they have it in; every layout ends in names and positives."""

import io
import pathlib
import pickle
import struct

import numpy as np
import pytest

from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.numpy_files import load_array
from progeo.places.positives import find_positives

DATABASE, QUERIES = ["db/0.jpg", "db/1.jpg", "db/2.jpg"], ["q/0.jpg", "q/1.jpg"]


def ragged(*rows):
    values = np.empty(len(rows), dtype=object)
    values[:] = rows
    return values


def save(folder, **arrays):
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=True)


def paths(catalogue):
    return catalogue.table["path"].to_pylist()


def positives(sides):
    return [rows.tolist() for rows in sides["queries"].positives]


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (ragged(np.array([[2], [0]]), np.array([], float)), [[0, 2], []]),  # np.argwhere; an empty array is of floats
        (ragged((np.array([1, 2]),), [np.array([0]), 1]), [[1, 2], [0, 1]]),  # np.where gives a tuple
        (ragged(range(1, 3), [0, np.int32(2)]), [[1, 2], [0, 2]]),
        (ragged(np.array([2.0, 0.0]), 1), [[0, 2], [1]]),
        (np.array([[1, 2], [0, 1]], object), [[1, 2], [0, 1]]),
        (np.array([[1], [2]], ">u2"), [[1], [2]]),
        (np.array([[True, False, True], [False, False, False]]), [[0, 2], []]),
        (ragged(*[[1, 0]] * 2), [[0, 1], [0, 1]]),
    ],
    ids=["argwhere", "where", "range", "floats", "matrix of objects", "big-endian", "booleans", "one list twice"],
)
@pytest.mark.parametrize("ending", ["gt", "gt_25m"])
def test_positives_are_read_however_they_are_held(tmp_path, ending, truth, expected):
    save(tmp_path, own_dbImages=DATABASE, own_qImages=QUERIES, **{f"own_{ending}": truth})
    assert positives(read_arrays(tmp_path, tmp_path)) == expected


@pytest.mark.parametrize("protocol", range(2, 6))
def test_positives_are_read_from_every_protocol(tmp_path, protocol):
    save(tmp_path, dbImages=DATABASE, qImages=QUERIES)
    with (tmp_path / "gt.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        stream.write(pickle.dumps(ragged([2, 1], np.int64(0)), protocol=protocol))
    assert positives(read_arrays(tmp_path, tmp_path)) == [[1, 2], [0]]


def test_positives_are_read_as_python_2_wrote_them(tmp_path):
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    integers = array + b"(I1\n(I2\ntcnumpy\ndtype\n(S'i4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    integers += b"S'\\x02\\x00\\x00\\x00\\x01\\x00\\x00\\x00'\ntb"
    objects = array + b"(I1\n(I2\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n"
    save(tmp_path, dbImages=DATABASE, qImages=QUERIES)
    (tmp_path / "gt.npy").write_bytes(pickled(objects + b"(lp0\n" + integers + b"a(lI0\naatb."))
    assert positives(read_arrays(tmp_path, tmp_path)) == [[1, 2], [0]]


NAMES = ["./db\\0.jpg", ".\\db/1.jpg", "db/2.jpg"]


@pytest.mark.parametrize(
    "names",
    [
        np.array(NAMES),
        np.array(NAMES, object),
        np.array(NAMES, "S"),
        ragged(*(name.encode() for name in NAMES)),
        ragged(*map(np.str_, NAMES)),
        ragged(*(pathlib.PurePosixPath(name.replace("\\", "/")) for name in NAMES)),
        np.array(NAMES)[:, None],
        np.asfortranarray(np.array([NAMES])),
    ],
    ids=["U", "O", "S", "bytes", "str_", "pathlib", "column", "row"],
)
def test_names_are_read_however_they_are_held(tmp_path, names):
    save(tmp_path, dbImages=names, qImages=QUERIES, gt=np.array([0, 2]))
    sides = read_arrays(tmp_path, tmp_path)
    assert (paths(sides["database"]), paths(sides["queries"])) == (DATABASE, QUERIES)


def test_the_queries_of_msls_are_those_that_its_index_names(tmp_path):
    queries = [f"q/{number}.jpg" for number in range(5)]
    save(tmp_path, msls_val_dbImages=DATABASE, msls_val_qImages=queries, msls_val_qIdx=[4, 0])
    save(tmp_path, msls_val_pIdx=ragged(np.array([2, 1]), np.array([0])))
    sides = read_arrays(tmp_path, tmp_path)
    assert paths(sides["queries"]) == ["q/4.jpg", "q/0.jpg"]
    assert positives(sides) == [[1, 2], [0]]
    save(tmp_path, msls_val_qIdx=[5, 0])
    with pytest.raises(ValueError, match=r"msls_val_qIdx\.npy names rows beyond the 5 queries.*: 5 is not from 0 to 4"):
        read_arrays(tmp_path, tmp_path)


def test_rows_of_chosen_queries_are_in_the_order_of_the_index(tmp_path):
    save(tmp_path, dbImages=DATABASE, qImages=QUERIES, qIdx=[1, 0], pIdx=ragged([0], [2]))
    sides = read_arrays(tmp_path, tmp_path)
    assert (paths(sides["queries"]), positives(sides)) == (QUERIES[::-1], [[0], [2]])


def test_740_of_747_queries_of_msls_keep_their_own_positives(tmp_path):
    """As the authors of Mapillary SLS choose them: those of 747 queries that have a positive."""
    database, queries = [f"db/{number}.jpg" for number in range(100)], [f"q/{number}.jpg" for number in range(747)]
    index = np.delete(np.arange(747), [3, 100, 101, 400, 500, 745, 746])
    rows = ragged(*(np.array([number % 90, number % 90 + 10]) for number in index))
    save(tmp_path, msls_val_dbImages=database, msls_val_qImages=queries, msls_val_qIdx=index, msls_val_pIdx=rows)
    sides = read_arrays(tmp_path, tmp_path)
    assert paths(sides["queries"]) == [f"q/{number}.jpg" for number in index]
    assert positives(sides) == [[number % 90, number % 90 + 10] for number in index.tolist()]
    save(tmp_path, msls_val_pIdx=ragged(*rows[:-1]))
    with pytest.raises(ValueError, match=r"msls_val_pIdx\.npy has 739 rows for 740 queries"):
        read_arrays(tmp_path, tmp_path)


@pytest.mark.parametrize("truth", [[0, 2], [2, 1, 1, 1, 0]], ids=["of the chosen", "of all"])
def test_an_index_of_queries_chooses_from_positives_of_any_name(tmp_path, truth):
    queries = [f"q/{number}.jpg" for number in range(5)]
    save(tmp_path, val_dbImages=DATABASE, val_qImages=queries, val_qIdx=[4, 0], val_gt_25m=truth)
    sides = read_arrays(tmp_path, tmp_path)
    assert paths(sides["queries"]) == ["q/4.jpg", "q/0.jpg"]
    assert positives(sides) == [[0], [2]]
    save(tmp_path, val_pIdx=[0, 2])
    with pytest.raises(ValueError, match="several ground truths of one set"):
        read_arrays(tmp_path, tmp_path)


def test_images_are_read_by_their_former_names_in_openvprlab(tmp_path):
    save(tmp_path, val_ref_image_names=DATABASE, val_query_image_names=QUERIES, val_ground_truth_25m=[2, 0])
    assert positives(read_arrays(tmp_path, tmp_path)) == [[2], [0]]


def test_names_without_ground_truth_are_read(tmp_path):
    save(tmp_path, msls_test_dbImages=DATABASE, msls_test_qImages=QUERIES)
    sides = read_arrays(tmp_path, tmp_path)
    assert (paths(sides["database"]), paths(sides["queries"])) == (DATABASE, QUERIES)
    assert sides["queries"].positives is None


def test_of_several_sets_in_a_folder_one_is_chosen(tmp_path):
    for name, rows in (("pitts30k_val", [0, 1]), ("pitts30k_test", [2, 2])):
        save(tmp_path, **{f"{name}_dbImages": DATABASE, f"{name}_qImages": QUERIES, f"{name}_gt": rows})
    with pytest.raises(ValueError, match="holds the sets 'pitts30k_test', 'pitts30k_val': choose one with `name`"):
        read_arrays(tmp_path, tmp_path)
    for name in ("pitts30k_test", "pitts30k_test_"):
        assert positives(read_arrays(tmp_path, tmp_path, name)) == [[2], [2]]
    with pytest.raises(
        FileNotFoundError, match=r"of a set that is called pitts250k: it must hold dbImages\.npy, qImages"
    ):
        read_arrays(tmp_path, tmp_path, "pitts250k")
    save(tmp_path, pitts30k_test_gt_25m=[1, 1])
    with pytest.raises(ValueError, match=r"holds pitts30k_test_gt\.npy and pitts30k_test_gt_25m\.npy: keep one"):
        read_arrays(tmp_path, tmp_path, "pitts30k_test")


def write_patch_netvlad(folder, gt_folder, **arrays):
    gt_folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_imageNames_index.txt").write_text("./db/0.jpg\n./db/1.jpg\n./db/2.jpg\n")
    (folder / "own_imageNames_query.txt").write_text("./q/0.jpg\r\n./q/1.jpg\n\n")
    places = {"utmDb": np.array([[0.0, 0], [10, 0], [40, 0]]), "utmQ": np.array([[0.0, 0], [30, 0]])}
    np.savez(gt_folder / "own_test.npz", **{**places, **arrays})


@pytest.mark.parametrize(
    ("arrays", "given", "within_25_m"),
    [
        ({"posDistThr": np.array(25)}, None, [[0, 1], [1, 2]]),
        ({}, None, [[0, 1], [1, 2]]),
        ({"posDistThr": np.array([[10.0]])}, [[0, 1], [2]], [[0, 1], [2]]),
    ],
)
def test_patch_netvlad_gives_positions_and_its_own_radius(tmp_path, arrays, given, within_25_m):
    write_patch_netvlad(tmp_path / "dataset_imagenames", tmp_path / "dataset_gt_files", **arrays)
    sides = read_arrays(tmp_path / "dataset_imagenames", tmp_path)
    assert (paths(sides["database"]), paths(sides["queries"])) == (DATABASE, QUERIES)
    assert sides["database"].east.tolist() == [0, 10, 40]
    assert (None if sides["queries"].positives is None else positives(sides)) == given
    assert [rows.tolist() for rows in find_positives(*sides.values(), 25)] == within_25_m


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"utmQ": np.zeros((3, 2))},
            r"must hold east and north of the 2 images in own_imageNames_query\.txt.*\(3, 2\)",
        ),
        ({"utmDb": ragged([0, 1], [2], [3])}, "must hold numbers utmQ, utmDb and posDistThr"),
        ({"utmDb": np.full((3, 2), np.nan)}, "must hold east and north of the 3 images"),
    ],
)
def test_positions_that_do_not_fit_are_refused(tmp_path, arrays, words):
    write_patch_netvlad(tmp_path, tmp_path, **arrays)
    with pytest.raises(ValueError, match=words):
        read_arrays(tmp_path, tmp_path)


def test_lists_without_positions_are_refused(tmp_path):
    write_patch_netvlad(tmp_path / "lists", tmp_path / "lists")
    (tmp_path / "lists/own_val.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"one file own\*\.npz .*; there are own_test\.npz, own_val\.npz"):
        read_arrays(tmp_path / "lists", tmp_path)
    for file in (tmp_path / "lists").glob("*.npz"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"one file own\*\.npz .*; there is none"):
        read_arrays(tmp_path / "lists", tmp_path)


@pytest.fixture
def bench(tmp_path):
    for side, names in (
        ("ref", ["2.jpg", "10.jpg", "9.jpg"] + [f"{n}.jpg" for n in range(3, 9)]),
        ("query", ["1.jpg", "0.jpg"]),
    ):
        (tmp_path / side).mkdir()
        for name in names:
            (tmp_path / side / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "truth",
    [
        np.array([[0, [8, 0]], [1, []]], object),
        np.array([[1, []], [0, [8, 0]]], object),  # by their numbers, not their lines
        np.array([[0.0, range(0, 9, 8)], [1.0, np.array([], int)]], object),
    ],
)
def test_vpr_bench_counts_images_in_the_order_of_their_numbers(bench, truth):
    save(bench, ground_truth_new=truth)
    sides = read_arrays(bench, bench)
    assert paths(sides["database"]) == [f"ref/{number}.jpg" for number in range(2, 11)]
    assert paths(sides["queries"]) == ["query/0.jpg", "query/1.jpg"]
    assert positives(sides) == [[0, 8], []]


@pytest.mark.parametrize(
    ("truth", "image", "words"),
    [
        (np.array([[0, [9]], [1, [0]]], object), "ref/2.jpg", r"numbers from 0 to 8 of images of ref; for query 0 .*9"),
        (np.array([[0, [8]], [1, ["a"]]], object), "ref/2.jpg", "for query 1 it gives .*a"),
        (np.array([[0, [8]], [0, [1]]], object), "ref/2.jpg", "2 lines with the numbers of the queries, from 0"),
        (np.array([[0, [8]]], object), "ref/2.jpg", "2 lines with the numbers of the queries, from 0; it has 1"),
        (np.array([0, 1]), "ref/2.jpg", r"of the shape \(queries, 2\), it has \(2,\)"),
        (np.array([[0, [8]], [1, [0]]], object), "ref/12.jpg", "with the numbers 2 to 12, but none with 11"),
        (np.array([[0, [8]], [1, [0]]], object), "query/x.jpg", r"query/x\.jpg: its name must be a number"),
        (np.array([[0, [8]], [1, [0]]], object), "query/01.jpg", r"its name must be a number of its own"),
    ],
)
def test_a_vpr_bench_that_does_not_fit_together_is_refused(bench, truth, image, words):
    (bench / image).touch()
    save(bench, ground_truth_new=truth)
    with pytest.raises(ValueError, match=words):
        read_arrays(bench, bench)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"gt": np.array([[0, 0, 1], [0, 1, 1]])}, "only 0 and 1 for 3 database images: save it as booleans"),
        ({"gt": np.ones((2, 4), bool)}, r"booleans of the shape \(2, 4\) for 3 database images"),
        ({"gt": ragged([0.5], [1])}, r"must hold rows of database images, its element 0 holds \[0\.5\]"),
        ({"gt": np.array(["0", "1"])}, "must hold rows of database images, its element 0 holds 0"),
        ({"gt": np.array("x")}, r"gt\.npy must hold rows of database images, its element 0 holds x"),
        ({"gt": ragged(None, [1])}, "its element 0 holds None"),
        ({"gt": np.array([-1, 0])}, "names rows beyond the 3 database images for query 0: -1 is not from 0 to 2"),
        ({"gt": np.array([1 + 2j, 0])}, "must hold rows of database images"),
        ({"dbImages": np.arange(3)}, r"dbImages\.npy must hold names of images, it holds 0"),
        ({"dbImages": np.array(["a", ""])}, r"dbImages\.npy must hold names of images, it holds ''"),
        ({"dbImages": ragged("a", None)}, r"dbImages\.npy must hold names of images, it holds None"),
        ({"dbImages": np.array([b"\xe9.jpg"])}, r"dbImages\.npy: a name is not in UTF-8"),
        ({"qImages": np.array([], str)}, r"qImages\.npy is empty"),
    ],
)
def test_arrays_of_something_else_are_refused(tmp_path, arrays, words):
    save(tmp_path, **{"dbImages": DATABASE, "qImages": QUERIES, "gt": np.array([0, 1]), **arrays})
    with pytest.raises(ValueError, match=words):
        read_arrays(tmp_path, tmp_path)


def pickled(content):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return stream.getvalue() + content


def saved(values):
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def nested(depth):
    rows = [0]
    for _ in range(depth):
        rows = [rows, rows]
    return saved(ragged(rows))


def endless():
    rows = []
    rows += [rows] * 1000
    return saved(ragged(rows))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty. Is the download complete?"),
        (b"<!DOCTYPE html><html>404</html>", "it begins with b'<!DOCTYPE html>.', which is no .npy file"),
        (b"PK\3\4" + b"\0" * 40, "which is no .npy file"),
        (saved(np.arange(100))[:200], "it ends after 72 of 800 bytes"),
        (saved(np.arange(100))[:40], "cannot be read"),
        (saved(ragged([1], [2]))[:-20], "it is truncated, or holds something else"),
        (saved(np.zeros(2, [("a", int)])), "not numbers or texts"),
        (saved(np.ones(1, "M8[s]").view("M8")), "of the kind datetime64, not numbers or texts"),
        (pickled(b"\x80\x02]r" + struct.pack("<I", 0x7FFFFFFF) + b"."), "it holds no array"),
        (pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"."), "cannot be read"),  # a bytearray of 64 GB
        (nested(40), "its lists hold more than 4,194,304 values"),
        (endless(), "its lists hold more than"),
        (saved(ragged(range(10**12))), "its lists hold more than"),
        (saved(ragged({0: 1})), "it is truncated, or holds something else than arrays and lists"),
        (saved(ragged({0}, {1})), "it is truncated, or holds something else than arrays and lists"),
        (saved(ragged(np.zeros(1, "M8[s]"))), "of the kind 'M8', not of numbers or texts"),
    ],
)
def test_a_file_that_is_no_array_is_one_sentence(tmp_path, content, words):
    (tmp_path / "gt.npy").write_bytes(content)
    with pytest.raises(ValueError, match=words) as refused:
        load_array(tmp_path / "gt.npy")
    assert str(refused.value).startswith(f"{tmp_path / 'gt.npy'} cannot be read: ")


def test_a_forged_shape_is_refused(tmp_path):
    """NumPy's own array would read beyond the list."""
    content = pickle.dumps(ragged([0]), protocol=4).replace(b"K\x01\x85", b"K\x09\x85")
    (tmp_path / "gt.npy").write_bytes(pickled(content))
    with pytest.raises(ValueError, match="cannot reshape array of size 1"):
        load_array(tmp_path / "gt.npy")


def test_arrays_that_unpack_to_far_more_than_the_archive_are_refused(tmp_path):
    write_patch_netvlad(tmp_path, tmp_path)
    np.savez_compressed(tmp_path / "own_test.npz", utmDb=np.zeros((2**23, 2)), utmQ=np.zeros((2, 2)))
    assert (tmp_path / "own_test.npz").stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"own_test\.npz cannot be read: its arrays would take 134,218,\d+ bytes"):
        read_arrays(tmp_path, tmp_path)


def test_lines_without_values_are_not_visited_one_by_one(tmp_path):
    save(tmp_path, dbImages=DATABASE, qImages=QUERIES, gt=np.empty((2, 0), np.int64))
    assert positives(read_arrays(tmp_path, tmp_path)) == [[], []]
    content = (tmp_path / "gt.npy").read_bytes()
    (tmp_path / "gt.npy").write_bytes(content.replace(b"(2, 0), }            ", b"(2000000000000, 0), }"))
    with pytest.raises(
        ValueError, match=r"gt\.npy cannot be read: it holds 0 values for the shape \(2000000000000, 0\)"
    ):
        read_arrays(tmp_path, tmp_path)
