"""The file for the evaluator of Mapillary SLS."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.uploads import check_upload, check_uploadable, image_keys, write_upload
from progeo.places.catalogue import Catalogue


def catalogue(names):
    unknown = np.full(len(names), np.nan)
    columns = {"east": unknown, "north": unknown, "zone": np.zeros(len(names), np.int8)}
    return Catalogue(Path("images"), pa.table({"path": names, **columns}))


DATABASE = [f"miami/database/images/d{number}.jpg" for number in range(22)]
QUERIES = ["miami/query/images/-q_1.jpg", "athens/query/images/q2.jpg"]


@pytest.fixture
def results():
    predictions = np.stack([np.arange(20), np.arange(21, 1, -1)])
    return Retrieved(catalogue(DATABASE), catalogue(QUERIES), predictions, {}, np.full(2, ""), predictions + 0.5)


def test_a_line_has_the_key_of_a_query_and_those_of_its_predictions(results, tmp_path):
    write_upload(results, tmp_path, "challenge", num_queries=2)
    lines = (tmp_path / "challenge.csv").read_text().splitlines()
    assert lines[0] == "-q_1 " + " ".join(f"d{number}" for number in range(20))
    assert lines[1].startswith("q2 d21 d20 ")
    read = np.loadtxt(tmp_path / "challenge.csv", ndmin=2, dtype=str)  # as the evaluator reads it
    assert read.shape == (2, 21)
    with zipfile.ZipFile(tmp_path / "challenge.zip") as archive:
        assert archive.namelist() == ["challenge.csv"]
        assert archive.read("challenge.csv") == (tmp_path / "challenge.csv").read_bytes()


def test_the_evaluator_counts_the_hits_of_each_query_by_its_key(results, tmp_path):
    """As its recall, of file lines in any order: keys of the first n predictions that are keys of positives."""
    write_upload(results, tmp_path, "challenge", num_queries=2)
    read = np.loadtxt(tmp_path / "challenge.csv", ndmin=2, dtype=str)
    positives = {"q2": ["d21"], "-q_1": ["d4", "d21"]}
    lines = read[[np.where(read[:, 0] == key)[0][0] for key in positives], 1:]
    hits = {
        n: [np.isin(line[:n], positives[key]).any() for key, line in zip(positives, lines, strict=True)]
        for n in (1, 4, 5)
    }
    assert hits == {1: [True, False], 4: [True, False], 5: [True, True]}


def test_a_search_that_finds_too_few_is_refused(results, tmp_path):
    results.predictions[1, 19] = -1
    with pytest.raises(ValueError, match="as many predictions for each query: search exactly, or raise `probes`"):
        write_upload(results, tmp_path, "challenge", num_queries=2)
    assert not list(tmp_path.iterdir())


def test_queries_that_cannot_be_read_are_told(results, tmp_path, caplog):
    write_upload(results, tmp_path, "challenge", num_queries=5)
    assert "lacks 3 queries that cannot be read: the evaluator refuses it" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:1], "must have a line for each of the 2 queries, it has 1 lines, for 1 of them"),
        (lambda lines: [*lines, lines[0]], "2 queries, it has 3 lines, for 2 of them"),
        (lambda lines: [lines[0].replace("-q_1", "q3"), lines[1]], "2 queries, it has 2 lines, for 1 of them"),
        (lambda lines: [lines[0], lines[1] + " d0"], "line 2 has 21 different predictions, and the first line has 20"),
        (lambda lines: [line.rpartition(" ")[0] for line in lines], "line 1 has 19 different predictions"),
        (lambda lines: [lines[0].replace("d19", "d0"), lines[1]], "line 1 has 19 different predictions"),
        (lambda lines: [lines[0].replace("d19", "d22"), lines[1]], "line 1 predicts d22, which is no image"),
        (lambda lines: [lines[0], lines[1].replace(" d3", "#d3")], "line 2 has 18 different predictions"),
    ],
)
def test_a_file_that_the_evaluator_would_refuse_is_refused(results, tmp_path, change, words):
    write_upload(results, tmp_path, "challenge", num_queries=2)
    file = tmp_path / "challenge.csv"
    keys = [Path(name).stem for name in DATABASE], [Path(name).stem for name in QUERIES]
    file.write_text("# a comment\n" + file.read_text())
    check_upload(file, *keys)
    file.write_text("\n".join(change(file.read_text().splitlines()[1:])))
    with pytest.raises(ValueError, match=words):
        check_upload(file, *keys)


def test_what_cannot_be_written_is_refused_before_anything_is_extracted():
    check_uploadable(catalogue(DATABASE), catalogue(QUERIES), (1, 20))
    with pytest.raises(ValueError, match=r"`recall_ns` must name 20 or more, for the evaluator .* got 1, 10"):
        check_uploadable(catalogue(DATABASE), catalogue(QUERIES), (1, 10))
    with pytest.raises(ValueError, match="by their names without folders, and 2 are called d1"):
        check_uploadable(catalogue([*DATABASE, "athens/database/images/d1.png"]), catalogue(QUERIES), (20,))
    for name in ("a b.jpg", "#a.jpg", "a#b.jpg"):
        with pytest.raises(ValueError, match="separates names by spaces and ignores what follows a #: rename"):
            image_keys(catalogue([name]))
