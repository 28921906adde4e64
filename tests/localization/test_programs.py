"""What `localize` gives to other programs: lines, pairs, copies with positions, sequences and videos."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from indexes import localized
from PIL import Image
from running import files_in

from progeo.cli import main
from progeo.datasets.readers.photos import read_photos
from progeo.localization.frames import smoothed
from progeo.localization.options import SequenceOptions
from progeo.localization.place_index import open_index


@pytest.fixture(scope="module")
def photos(city, tmp_path_factory):
    """Photos of the index under other names, in the order of their places, and one that it does not know."""
    folder = tmp_path_factory.mktemp("photos")
    for number, path in enumerate(sorted((city / "train").iterdir())[:4]):
        shutil.copy(path, folder / f"{number}.jpg")
    Image.new("RGB", (64, 64), "red").save(folder / "9.jpg")
    return folder


def run(*words, index):
    main(["localize", *map(str, words), "--index", str(index), "--num_workers", "0"])


def test_each_result_is_a_line_of_json(built, photos, capsys):
    run(photos, "--json", "--top", 2, index=built / "index")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == sorted(map(str, photos.iterdir()))
    assert [len(line["matches"]) for line in lines] == [2] * 5


def test_paths_are_read_from_stdin(built, photos, capsys, monkeypatch):
    lines = f"{photos / '3.jpg'}\n\n{photos / '1.jpg'}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    run("-", "--json", index=built / "index")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == [str(photos / "3.jpg"), str(photos / "1.jpg")]


def test_an_empty_list_of_paths_is_refused(built, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(SystemExit, match="- reads paths of photos from standard input, one a line, and there are none"):
        run("-", index=built / "index")


def test_pairs_copies_and_maps_are_written_together(built, city, photos, tmp_path, capsys):
    words = ["--pairs", tmp_path / "pairs.txt", "--write_exif", tmp_path / "copies", "--top", 3]
    for ending in ("gpx", "kml"):
        run(photos, "--out", tmp_path / f"a.{ending}", *(words if ending == "gpx" else []), index=built / "index")
    assert files_in(tmp_path) == {"a.gpx", "a.kml", "pairs.txt", *(f"copies/{number}.jpg" for number in range(4))}
    root = next(folder for folder in photos.parents if city.is_relative_to(folder))
    pairs = [line.split() for line in (tmp_path / "pairs.txt").read_text().splitlines()]
    assert len(pairs) == 15 and all((root / name).is_file() for pair in pairs for name in pair)
    assert f"with names relative to {root}\n" in capsys.readouterr().err
    assert (root / pairs[0][0], root / pairs[0][1]) == (photos / "0.jpg", sorted((city / "train").iterdir())[0])
    copies, _ = read_photos(tmp_path / "copies")
    known = [result for result in localized(built / "index", photos) if result.known]
    np.testing.assert_allclose(copies.table["latitude"], [result.latitude for result in known], atol=1e-7)
    with pytest.raises(SystemExit, match=r"copies/0.jpg exists already: name another folder with --write_exif"):
        run(photos, "--write_exif", tmp_path / "copies", index=built / "index")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("{spaced} --pairs pairs.txt", "a b.jpg cannot be in a file of pairs, where spaces separate names"),
        ("{photos} --pairs pairs.txt --pairs_folder {photos}", "/train/.* is not in .*: --pairs_folder must hold"),
        ("{photos} --pairs {folder}", "could not be written: it is a folder"),
        ("{photos} --out {file}/a.csv", "{file}/a.csv could not be written: {file} is a file"),
        ("{photos} --write_exif {file}", "could not be written: {file} is a file"),
        ("{photos} --out a.csv --pairs a.csv", "--out and --pairs are the same file a.csv: name two files"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(built, photos, tmp_path, words, sentence):
    names = {"photos": photos, "spaced": tmp_path / "a b.jpg", "folder": tmp_path, "file": tmp_path / "file"}
    names["file"].touch()
    shutil.copy(photos / "0.jpg", names["spaced"])
    with pytest.raises(SystemExit, match=sentence.format(**names)):
        run(*(word.format(**names) for word in words.split()), index=built / "index")
    assert files_in(tmp_path) == {"file", "a b.jpg"}


def test_results_are_printed_and_other_files_written_if_one_cannot_be(built, photos, tmp_path, capsys, monkeypatch):
    class Meanwhile(io.BytesIO):
        def read(self):
            (tmp_path / "a.csv").mkdir()
            return super().read()

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Meanwhile(f"{photos / '0.jpg'}\n".encode())))
    words = ["--out", tmp_path / "a.csv", "--pairs", tmp_path / "pairs.txt", "--write_exif", tmp_path / "copies"]
    with pytest.raises(SystemExit, match=r"error: .*/a.csv could not be written: "):
        run("-", "--json", *words, index=built / "index")
    assert json.loads(capsys.readouterr().out)["query"] == str(photos / "0.jpg")
    assert files_in(tmp_path) == {"pairs.txt", "copies/0.jpg"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("a.jpg --pairs_folder b", "--pairs_folder is for the names in --pairs: name that file too"),
        ("a.jpg --sequence_fps 2", "--sequence_fps and --max_speed_mps are for --sequence: give that too"),
        ("a.jpg --max_speed_mps 2", "--sequence_fps and --max_speed_mps are for --sequence: give that too"),
        ("--text street --sequence", "--pairs, --write_exif and --sequence need photos, not --text."),
        ("--text street --pairs a.txt", "--pairs, --write_exif and --sequence need photos, not --text."),
        ("a.jpg --near 1,2,3 --sequence", "--sequence and --write_exif need a confidence: omit --near and --heading"),
        ("a.jpg --heading 1,2 --write_exif b", "--sequence and --write_exif need a confidence: omit --near"),
        ("a.mp4", "a.mp4 is a video: localize its frames with --sequence."),
        ("a.mp4 --sequence --pairs a.txt", "--pairs and --write_exif need photos, and a.mp4 is a video."),
        ("{photos} --sequence", "5 of 5 photos have no time in their EXIF"),
    ],
)
def test_options_that_do_not_fit_are_refused(built, photos, words, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run(*words.format(photos=photos).split(), index=built / "index")


@pytest.mark.parametrize("option", ["--sequence", "--write_exif copies"])
def test_what_needs_a_confidence_is_refused_without(built, photos, tmp_path, option):
    shutil.copytree(built / "index", tmp_path / "index")
    for file in (tmp_path / "index").glob("index*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "calibration": None}))
    with pytest.raises(SystemExit, match=f"{option.split()[0]} needs a calibrated index: run `progeo index calibrate`"):
        run(photos, *option.split(), index=tmp_path / "index")


def sequence(**values):
    return SequenceOptions(sequence=True, **values)


def test_a_frame_is_localized_by_those_around_it(built, city, tmp_path):
    """Five frames of a place in a row, the third of which shows another place far away, and time for one way only."""
    rows = open_index(built / "index").catalogue
    spread = np.hypot(rows.east - rows.east[0], rows.north - rows.north[0])
    far = Path(rows.path(int(spread.argmax())))
    for number in range(5):
        shutil.copy(far if number == 2 else rows.path(0), tmp_path / f"{number}.jpg")
    slow, fast = (
        localized(built / "index", tmp_path, sequence=sequence(sequence_fps=1, max_speed_mps=speed))
        for speed in (1, 1e5)
    )
    for results, shown in ((slow, [False] * 5), (fast, [False, False, True, False, False])):
        assert [result.matches[0].path == str(far) for result in results] == shown
        assert [result.frame.alone.path == str(far) for result in results] == [False, False, True, False, False]
        assert [(result.frame.seconds, result.known, len(result.matches)) for result in results] == [
            (seconds, True, 5) for seconds in range(5)
        ]
    near = slow[2].matches[0]
    assert np.hypot(near.east_m - rows.east[0], near.north_m - rows.north[0]) <= 26  # radius and speed
    assert f"alone: {slow[2].frame.alone.position}  {far}" in str(slow[2]) and "alone" not in str(slow[0])


def test_a_frame_out_of_reach_is_unknown_whatever_the_threshold(built, city):
    index = open_index(built / "index")
    spread = np.hypot(index.catalogue.east - index.catalogue.east[0], index.catalogue.north - index.catalogue.north[0])
    rows = [0, 0, int(spread.argmax()), 0, 0]
    alone = index.localize([index.catalogue.path(row) for row in rows], top=1)
    found = smoothed(index, alone, np.arange(5.0), max_speed_mps=1, threshold=0, top=1)
    assert [result.known for result in found] == [True, True, False, True, True]
    assert [result.matches for result in found] == [result.matches for result in alone]


def test_more_matches_to_show_are_no_more_candidates_of_the_track(built, monkeypatch):
    monkeypatch.setattr("progeo.localization.frames._NUM_CANDIDATES", 3)
    index = open_index(built / "index")
    rows = [0, len(index.catalogue) // 2, 0]
    all_matches = index.localize([index.catalogue.path(row) for row in rows], top=len(index.catalogue))
    few = [replace(result, matches=result.matches[:3]) for result in all_matches]
    options = {"seconds": np.arange(3.0), "max_speed_mps": 1, "threshold": 0.5}
    found, expected = (smoothed(index, each, top=9, **options) for each in (all_matches, few))
    assert [replace(one, matches=one.matches[:3]) for one in found] == expected
    assert [len(one.matches) for one in found] == [9] * 3


def test_a_video_becomes_a_track(built, photos, tmp_path, capsys):
    frames = [cv2.resize(cv2.imread(str(photos / f"{number}.jpg")), (96, 96)) for number in (0, 0, 1, 1)]
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 4, (96, 96))
    for frame in frames:
        writer.write(frame)
    writer.release()
    words = ["--sequence", "--sequence_fps", 2, "--max_speed_mps", 1000, "--top", 1]
    run(tmp_path / "drive.avi", *words, "--out", tmp_path / "a.csv", index=built / "index")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["photo"] for row in rows] == [f"{tmp_path / 'drive.avi'} at {time} s" for time in ("0.00", "0.50")]
    assert [row["seconds"] for row in rows] == ["0.0", "0.5"]
    assert capsys.readouterr().out.count("drive.avi at") == 2
