"""Place indexes of format 1, one faiss file and one catalogue, are searched and converted."""

import json
import shutil

import numpy as np
import pytest
from small_indexes import DIM, contents, expected, images, small_index

from progeo.cli import main
from progeo.evaluation.cell_index import build_cell_index
from progeo.evaluation.search import build_index, save_index
from progeo.features.store import ShardedRows
from progeo.files import file_digest
from progeo.localization.compacting import lists_of_rows
from progeo.localization.place_index import open_place_index
from progeo.verification.feature_file import open_feature_file, to_store, write_feature_file

COUNT = 40
FILES = ("places_0123456789ab.faiss", "catalogue_0123456789ab.arrow", "features_0123456789ab.arrow")
FIELDS = (
    *("kind", "probes", "encoder", "image_size", "database_preprocessing", "query_preprocessing", "calibration"),
    *("verification", "orientation", "of", "cell_side_m", "scale", "classifier", "partition", "generation"),
)


def former_index(folder, encoder, tmp_path, kind="Flat", *, features=False, digests=True):
    """Write an index of images a0, a1, ... as progeo wrote it in format 1."""
    small_index(folder, encoder, tmp_path, count=COUNT)
    values = json.loads((folder / "index.json").read_text())
    shutil.move(folder / "part_00000/catalogue.arrow", folder / FILES[1])
    shutil.rmtree(folder / "part_00000")
    rows = ShardedRows(tmp_path / "rows", num_rows=COUNT, width=DIM, shard_size=COUNT, dtype="float32")
    save_index(build_index(rows, kind), folder / FILES[0])
    names = FILES[: 3 if features else 2]
    found = {name: file_digest(folder / name) for name in FILES[:2]}
    if features:
        write_feature_file(folder / FILES[2], [to_store(f"a{row}".encode()) for row in range(COUNT)])
        found[FILES[2]] = open_feature_file(folder / FILES[2]).fingerprint
    kept = {name: values[name] for name in FIELDS}
    named = dict(zip(("faiss_file", "catalogue_file", "features_file"), names, strict=False))
    former = {**kept, "kind": kind, "probes": 2, "images": COUNT, **named, "digests": found if digests else {}}
    (folder / "index.json").write_text(json.dumps({**former, "format": 1}))
    return folder


@pytest.fixture
def values():
    return images("a", COUNT)[1]


@pytest.mark.parametrize(("kind", "digests"), [("Flat", True), ("Flat", False), ("IVF2,Flat", True), ("SQ8", True)])
def test_an_index_of_format_1_is_searched(kind, digests, small_encoder, tmp_path, values):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path, kind, digests=digests)
    opened = open_place_index(folder)
    assert opened.metadata.rows == "40 images"
    assert opened.search(values).rows[:, 0].tolist() == list(range(COUNT))
    (found,) = opened.localize(np.zeros((48, 48, 3), np.uint8), near=(10.003, 20, 150), top=9)
    assert {match.path.rpartition("/")[2] for match in found.matches} == {"a2.jpg", "a3.jpg", "a4.jpg"}


@pytest.mark.parametrize("kind", ["Flat", "IVF2,Flat", "SQ8"])
def test_an_index_of_format_1_is_converted_by_compact(kind, small_encoder, tmp_path, values, capsys):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path, kind, features=True)
    before = open_place_index(folder).search(values)
    main(["index", "compact", str(folder)])
    assert ("restores descriptors with a loss" in capsys.readouterr().err) == (kind == "SQ8")
    opened = open_place_index(folder)
    after = opened.search(values)
    assert after.rows[:, 0].tolist() == before.rows[:, 0].tolist() == list(range(COUNT))
    np.testing.assert_allclose(after.distances, before.distances, atol=0.02)
    assert [each.values for each in opened.features.stored()] == [f"a{row}".encode() for row in range(COUNT)]
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.json", "index_1.json", "model", *opened.metadata.data_names}
    if kind == "Flat":
        assert contents(folder) == expected(a=COUNT)


def test_the_list_of_each_row_of_an_index_of_cells_is_read(tmp_path, values):
    rows = ShardedRows(tmp_path, num_rows=COUNT, width=DIM, shard_size=COUNT, dtype="float32")
    rows.write_shard(0, values)
    labels = np.arange(COUNT) % 3
    assert lists_of_rows(build_cell_index(rows, labels, np.eye(3, DIM))).tolist() == labels.tolist()


def test_an_index_of_format_1_that_restores_nothing_is_searched_and_says_so(small_encoder, tmp_path, values, capsys):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path, "LSH")
    opened = open_place_index(folder)
    assert (opened.search(values).rows[:, 0] >= 0).all()
    words = "An index of the kind IndexLSH does not restore its rows: build it anew"
    with pytest.raises(ValueError, match=words):
        opened.localize(np.zeros((48, 48, 3), np.uint8), near=(10, 20, 150))
    with pytest.raises(SystemExit, match=words):
        main(["index", "compact", str(folder)])
    assert "with a loss" not in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"index.json", "model", *FILES[:2]}


@pytest.mark.parametrize("verb", ["add", "calibrate", "remove", "check"])
def test_an_index_of_format_1_is_changed_only_once_it_is_converted(verb, small_encoder, tmp_path):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path)
    (tmp_path / "images").mkdir()
    given = [] if verb == "check" else ["--folder", str(tmp_path / "images")]
    with pytest.raises(SystemExit, match=r"is in format 1, which is only searched: run `progeo index compact` first"):
        main(["index", verb, str(folder), *given])


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", FILES[:2])
def test_a_damaged_file_of_format_1_is_refused_by_name(name, digests, small_encoder, tmp_path):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path, digests=digests)
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=name):
        open_place_index(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"faiss_file": "../places_0123456789ab.faiss"}, r"expected str matching regex .*places_"),
        ({"catalogue_file": "places_1.faiss"}, r"expected str matching regex .*catalogue_"),
        ({"images": 41}, "do not belong together: 41 rows in index.json, 40 in catalogue_"),
        ({"parts": []}, "unknown 'parts'"),
        ({"format": 2}, "unknown 'catalogue_file', 'digests', 'faiss_file', 'images'"),
    ],
)
def test_invalid_metadata_of_format_1_are_refused(changes, words, small_encoder, tmp_path):
    folder = former_index(tmp_path / "index", small_encoder, tmp_path)
    values = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ValueError, match=words):
        open_place_index(folder)
