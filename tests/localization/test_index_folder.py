"""The folder of a place index: validated when read, and updated by several commands at once."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial

import pytest
from small_indexes import DIM, add, contents, expected, images, small_index

from progeo.cli import main
from progeo.commands.index import build_index as build_command
from progeo.export.weights import save_encoder
from progeo.features.options import CacheOptions, WorkOptions
from progeo.localization.index_folder import commit, finish_update, read_metadata
from progeo.localization.place_index import open_place_index
from progeo.localization.stored_files import stored_file
from progeo.locks import locked
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import Catalogue, open_catalogue


def test_images_that_two_commands_add_at_once_are_all_there_with_their_own_descriptors(folder, tmp_path):
    first, second = open_place_index(folder), open_place_index(folder)  # both before either adds
    add(first, tmp_path, "b")
    add(second, tmp_path, "c")
    assert contents(folder) == expected(a=3, b=2, c=2)
    assert read_metadata(folder).generation == 2


def test_local_features_stay_in_the_rows_of_their_images_when_two_commands_add_at_once(small_encoder, tmp_path):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, features=[b"a0", None, b"a2"])
    first, second = open_place_index(folder), open_place_index(folder)
    add(first, tmp_path, "b")
    add(second, tmp_path, "c")
    opened = open_place_index(folder)
    added = [each.values for each in opened.features.stored()]
    assert added == [b"a0", None, b"a2", *[None] * 4]  # as the images of b and c are no files
    contents(folder)


def test_four_commands_at_once_lose_nothing(folder, tmp_path):
    opened = open_place_index(folder)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda prefix: add(opened, tmp_path, prefix), "bcde"))
    assert contents(folder) == expected(a=3, b=2, c=2, d=2, e=2)


def test_the_same_images_added_by_two_commands_are_there_once(folder, tmp_path):
    first, second = open_place_index(folder), open_place_index(folder)
    add(first, tmp_path, "b")
    add(second, tmp_path, "b", 3)
    assert contents(folder) == expected(a=3, b=3)


def test_a_command_that_was_killed_before_index_json_was_up_to_date_has_added_its_images(folder, tmp_path):
    before = (folder / "index.json").read_bytes()
    add(open_place_index(folder), tmp_path, "b")
    (folder / "index.json").write_bytes(before)
    opened = open_place_index(folder)
    assert len(opened.catalogue) == 5
    add(opened, tmp_path, "c")
    assert contents(folder) == expected(a=3, b=2, c=2)


def test_a_commit_on_an_index_that_changed_twice_since_is_rejected(folder, tmp_path):
    before = read_metadata(folder)
    for prefix in "bc":
        add(open_place_index(folder), tmp_path, prefix)
    assert not commit(folder, before, replace(before, probes=7))
    assert contents(folder) == expected(a=3, b=2, c=2)


def test_an_opened_index_can_be_searched_after_its_files_are_replaced(folder, tmp_path):
    opened = open_place_index(folder)
    add(open_place_index(folder), tmp_path, "b")
    _, values = images("a", 3)
    assert opened.search(values).rows[:, 0].tolist() == [0, 1, 2]
    assert opened.catalogue.name(2).endswith("/a2.jpg")


def test_an_index_that_was_built_anew_with_another_encoder_takes_no_descriptors_of_the_first(folder, tmp_path):
    opened = open_place_index(folder)
    shutil.rmtree(folder)
    other = build_encoder("tiny-resnet", "random", 48, descriptor_dim=DIM, seed=1)
    save_encoder(tmp_path / "other", other, provenance={}, recalls={})
    small_index(folder, tmp_path / "other", tmp_path)
    with pytest.raises(ValueError, match="was built anew meanwhile, and differently"):
        add(opened, tmp_path, "b")
    assert contents(folder) == expected(a=3)


CALIBRATION = {
    "radius_m": 25.0,
    "means": [0.1, 0.2],
    "stds": [1.0, 1.0],
    "weights": [0.0, 1.0, 2.0],
    "num_photos": 30,
    "num_correct": 20,
    "error": 0.1,
}
NAME = r"index.json is not as progeo writes it: expected str matching regex .*trained_.*, got {} in trained_file"
SIDES = r"expected .*, got .* in image_size"


def with_part(values, **changes):
    return {**values, "parts": [{**values["parts"][0], **changes}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trained_file": "../outside.faiss"}, NAME.format("'../outside.faiss'")),
        ({"trained_file": "/tmp/trained_0123456789ab.faiss"}, NAME.format("'/tmp/trained_0123456789ab.faiss'")),
        ({"trained_file": "trained_0123456789ab.faiss\n"}, NAME.format(".*")),
        ({"trained_file": None}, "expected str, got None in trained_file"),
        ({"trained_file": "trained_0123456789ab.faiss"}, "The files in .*index.json are not those that it names"),
        ({"removed_file": "../removed_0123456789ab.npy"}, r"expected str matching regex .*removed_"),
        ({"num_removed": 1}, "contradicts itself about removed rows"),
        ({"num_removed": 7}, "more removed rows than rows"),
        ({"parts": []}, "has no parts"),
        ({"new_field": 1}, "index.json is not as progeo writes it: unknown 'new_field'; its fields are kind"),
        ({"image_size": ...}, "missing the field image_size. Put the file back, or build"),
        ({"image_size": [48]}, r"expected array of length 2, got \[48\] in image_size"),
        ({"image_size": "48"}, SIDES),
        ({"image_size": [48, True]}, r"expected int, got True in image_size\[1\]"),
        ({"probes": 0}, "expected int >= 1, got 0 in probes"),
        ({"probes": 10**400}, "expected int <= 2147483647, got 1000.* in probes"),
        ({"kind": None}, "expected str, got None in kind"),
        ({"encoder": []}, r"expected object, got \[\] in encoder"),
        ({"encoder": {}}, "was not built with the encoder in"),
        ({"query_preprocessing": "maj_voting"}, "one of hard_resize, .*, got 'maj_voting' in query_preprocessing"),
        ({"database_preprocessing": ["native"]}, r"one of hard_resize, .*, got \['native'\] in database_preprocessing"),
        ({"generation": -1}, "expected int >= 0, got -1 in generation"),
        ({"format": 3}, "index.json is not a place index in format 1 or 2"),
        ({"calibration": []}, r"index.json .* expected .*Calibration, got \[\] in calibration"),
        ({"calibration": {}}, "calibration in .*index.json .* missing the field radius_m. Set calibration to null"),
        (
            {"calibration": {**CALIBRATION, "slope": 1}},
            "unknown 'slope'; its fields are radius_m, .*. Set calibration to null",
        ),
        ({"calibration": {**CALIBRATION, "weights": None}}, "expected array, got None in weights"),
        ({"calibration": {**CALIBRATION, "weights": [1, 2]}}, r"expected array of length 3, got \[1, 2\] in weights"),
        ({"calibration": {**CALIBRATION, "means": [0, float("nan")]}}, r"got nan in means\[1\]"),
        ({"calibration": {**CALIBRATION, "stds": [1, 0]}}, r"expected float > 0.0, got 0 in stds\[1\]"),
        ({"calibration": {**CALIBRATION, "radius_m": float("inf")}}, "got inf in radius_m"),
        ({"calibration": {**CALIBRATION, "error": 10**400}}, "number out of range, got 1000.* in error"),
        ({"calibration": {**CALIBRATION, "num_correct": "20"}}, "expected int, got '20' in num_correct"),
        ({"files": {"places": 3}}, r"expected object, got .* in files"),
    ],
)
def test_invalid_metadata_is_refused_by_name(changes, words, folder):
    values = {**json.loads((folder / "index.json").read_text()), **changes}
    given = {name: value for name, value in values.items() if value is not ...}
    (folder / "index.json").write_text(json.dumps(given))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_place_index(folder)


FORMER_NAMES = {"stds": "spreads", "num_correct": "num_right"}


@pytest.mark.parametrize("former", [{}, FORMER_NAMES], ids=["current names", "former names"])
def test_a_valid_calibration_is_read(folder, former):
    calibration = {former.get(name, name): value for name, value in CALIBRATION.items()}
    values = {**json.loads((folder / "index.json").read_text()), "calibration": calibration}
    (folder / "index.json").write_text(json.dumps(values))
    read = open_place_index(folder).metadata.calibration
    assert (read.weights, read.stds, read.num_correct) == ((0.0, 1.0, 2.0), (1.0, 1.0), 20)


FILES = ("catalogue.arrow", "descriptors.npy", "paths.npy")


def changed_part(folder, change):
    """Change the metadata of the first part in index.json."""
    values = json.loads((folder / "index.json").read_text())
    change(values["parts"][0])
    (folder / "index.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_refused(name, folder, tmp_path):
    file = folder / "part_00000" / name
    outside = file.rename(tmp_path / file.name)
    file.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{file.name} leads out of its folder"):
        open_place_index(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_a_truncated_and_a_damaged_file_are_refused_by_name(name, folder):
    file = folder / "part_00000" / name
    content = file.read_bytes()
    file.write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"{name} is corrupt: it has 100 bytes and was written with [\d,]+\. Put"):
        open_place_index(folder)
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match=f"{name} is corrupt: index.json has the digest of other content. Put"):
        open_place_index(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: put it back, or build the index anew"):
        open_place_index(folder)


def test_a_part_whose_files_or_name_are_others_is_refused(folder):
    changes = (
        (lambda part: part.update(rows=4), "The files of .*part_00000 do not belong together: 4 rows in index.json, 3"),
        (lambda part: part.update(name="../part_00000"), "expected str matching regex .*part_"),
        (
            lambda part: part["files"].update({"../mine.npy": part["files"]["paths.npy"]}),
            "Invalid enum value '../mine.npy'",
        ),
        (lambda part: part["files"].pop("paths.npy"), "part_00000 in .*index.json should have the files catalogue"),
    )
    kept = (folder / "index.json").read_bytes()
    for change, words in changes:
        changed_part(folder, change)
        with pytest.raises(ValueError, match=words):
            open_place_index(folder)
        (folder / "index.json").write_bytes(kept)


def test_a_catalogue_of_something_else_is_refused_by_name(folder):
    file = folder / "part_00000/catalogue.arrow"
    catalogue = open_catalogue(file, folder)
    Catalogue(folder, catalogue.table.drop_columns("latitude")).save(file)
    changed_part(folder, lambda part: part["files"].update({file.name: asdict(stored_file(file))}))
    with pytest.raises(ValueError, match=f"{file.name} is no catalogue of a place index, it should have path, east"):
        open_place_index(folder)


def test_an_index_that_somebody_sent_leads_no_command_to_other_files(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes in ({"trained_file": "../mine.faiss"}, {"removed_file": "../mine.npy"}):
        values = json.loads((folder / "index.json").read_text())
        for file in changes.values():
            (folder / file).write_text("mine")
        (folder / "sent.json").write_text(json.dumps({**values, **changes}))
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        kept = (folder / "index.json").read_bytes()
        (folder / "sent.json").replace(folder / "index.json")
        with pytest.raises(SystemExit, match=r"index\.json is not as progeo writes it: expected str matching regex"):
            main(["index", "add", "--index", str(folder), "--folder", str(tmp_path)])
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        (folder / "index.json").write_bytes(kept)


def test_a_file_of_the_user_that_looks_like_a_generation_is_refused(folder):
    shutil.copy(folder / "index.json", folder / "index_5.json")
    with pytest.raises(ValueError, match=r"index_5.json has the content of generation 0: remove it"):
        open_place_index(folder)


def test_a_killed_update_is_finished_and_data_of_no_generation_are_removed(folder):
    (folder / "index_1.json").write_text(
        json.dumps({**json.loads((folder / "index.json").read_text()), "generation": 1})
    )
    (folder / "part_00007").mkdir()
    for name in ("part_00007/descriptors.npy", "removed_0123456789ab.npy", "trained_0123456789ab.faiss"):
        (folder / name).write_text("x")
    for name in ("places_mine.faiss", "part_7.txt"):
        (folder / name).write_text("x")
    finish_update(folder)
    assert json.loads((folder / "index.json").read_text())["generation"] == 1
    assert {path.name for path in folder.iterdir()} == {
        *("index.json", "index_1.json", "model", "part_00000", "places_mine.faiss", "part_7.txt"),
    }


def test_of_two_commands_that_build_an_index_in_one_folder_the_second_changes_nothing(original, city, tmp_path, caplog):
    out, other = tmp_path / "index", build_encoder("tiny-resnet", "random", 48, seed=1)
    save_encoder(tmp_path / "encoder", other, provenance={}, recalls={})
    work, cache = WorkOptions(num_workers=0), CacheOptions(descriptor_cache=tmp_path / "cache")
    second = partial(build_command, str(tmp_path / "encoder"), folder=city / "train", work=work, cache=cache)
    out.mkdir()
    with caplog.at_level("INFO", "progeo"), ThreadPoolExecutor(1) as pool:
        with locked(out):  # as the first while it saves
            ended = pool.submit(second, out=out)
            while "waiting for process" not in caplog.text and not ended.done():
                time.sleep(0.05)
            shutil.copytree(original, out, dirs_exist_ok=True)
        with pytest.raises(ValueError, match="holds a place index already"):
            ended.result()
    assert contents(out) == expected(a=3)
    open_place_index(out)  # whose encoder is still that of the first
    (tmp_path / "third").mkdir()
    for name in ("part_00003", "part_00000"):
        (tmp_path / "third" / name).mkdir()  # of a command that was killed
    second(out=tmp_path / "third")
    assert {path.name for path in (tmp_path / "third").iterdir()} == {"index.json", "model", "part_00000"}
