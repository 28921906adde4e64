"""The folder of a place index: validated when read, and updated by several commands at once."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pyarrow as pa
import pytest
from running import killed_at

from progeo.cli import main
from progeo.commands.index import build_index as build_command
from progeo.evaluation.search import build_index, load_index
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.descriptors import descriptor_metadata
from progeo.features.options import CacheOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.localization.building import add_images
from progeo.localization.index_folder import (
    IndexMetadata,
    commit,
    finish_update,
    new_files,
    read_metadata,
    remove_unused_data,
    save_generation,
)
from progeo.localization.place_index import index_images, open_place_index
from progeo.locks import locked
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import Catalogue, open_catalogue
from progeo.verification.feature_file import to_store

DIM = 256


def images(prefix, count):
    """Images of an index and their descriptors, of which every one says whose it is."""
    east, nothing = np.arange(count, dtype=float), np.full(count, np.nan)
    numbers = {"east": east, "north": east, "zone": np.zeros(count, np.int8), "heading": nothing}
    table = pa.table({"path": pa.array([f"{prefix}{row}.jpg" for row in range(count)], pa.large_string()), **numbers})
    first = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}[prefix]
    return table, np.stack([np.full(count, first), east, *np.zeros((DIM - 2, count))], axis=1).astype(np.float32)


def stored(folder, values):
    rows = ShardedRows(folder, num_rows=len(values), width=DIM, shard_size=len(values), dtype="float32")
    rows.write_shard(0, values)
    return rows


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An index of three images a0, a1, a2."""
    folder = tmp_path_factory.mktemp("index") / "index"
    save_encoder(
        folder / "model", build_encoder("tiny-resnet", "random", 48, descriptor_dim=DIM), provenance={}, recalls={}
    )
    table, values = images("a", 3)
    metadata = IndexMetadata(
        kind="Flat",
        probes=1,
        encoder=descriptor_metadata(load_encoder(folder / "model")),
        image_size=(48, 48),
        database_preprocessing="hard_resize",
        query_preprocessing="hard_resize",
        images=3,
        **new_files(),
    )
    index = build_index(stored(folder.parent / "rows", values), "Flat")
    assert save_generation(folder, None, metadata, index, index_images(Catalogue(folder, table)))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "index")
    return tmp_path / "index"


def add(opened, tmp_path, prefix, count=2):
    table, values = images(prefix, count)
    add_images(opened, index_images(Catalogue(opened.folder, table)), stored(tmp_path / f"rows_{prefix}", values))


def contents(folder):
    """The descriptors of an index by the names of its images, and that no other file lies beside those it holds."""
    metadata = json.loads((folder / "index.json").read_text())
    names = open_catalogue(folder / metadata["catalogue_file"], folder).table["path"].to_pylist()
    names = [name.rpartition("/")[2] for name in names]
    rows = load_index(folder / metadata["faiss_file"]).reconstruct_n(0, len(names))[:, :2].tolist()
    generation = {f"index_{metadata['generation']}.json"} if metadata["generation"] else set()
    files = {path.name for path in folder.iterdir()}
    assert files == {"index.json", "model", metadata["faiss_file"], metadata["catalogue_file"], *generation}
    assert len(set(names)) == len(names) == metadata["images"]
    return dict(zip(names, rows, strict=True))


def expected(**counts):
    first = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    return {f"{name}{row}.jpg": [first[name], row] for name, count in counts.items() for row in range(count)}


def test_images_that_two_commands_add_at_once_are_all_there_with_their_own_descriptors(folder, tmp_path):
    first, second = open_place_index(folder), open_place_index(folder)  # both before either adds
    add(first, tmp_path, "b")
    add(second, tmp_path, "c")
    assert contents(folder) == expected(a=3, b=2, c=2)
    assert read_metadata(folder).generation == 2


def test_local_features_stay_in_the_rows_of_their_images_when_two_commands_add_at_once(folder, tmp_path):
    before = read_metadata(folder)
    index, catalogue = load_index(folder / before.faiss_file), open_catalogue(folder / before.catalogue_file, folder)
    metadata = replace(before, **new_files(features=True))
    assert save_generation(folder, before, metadata, index, catalogue, features=map(to_store, [b"a0", None, b"a2"]))
    first, second = open_place_index(folder), open_place_index(folder)
    add(first, tmp_path, "b")
    add(second, tmp_path, "c")
    opened = open_place_index(folder)
    added = [each.values for each in opened.features.stored()]
    assert added == [b"a0", None, b"a2", *[None] * 4]  # as the images of b and c are no files
    data = {opened.metadata.faiss_file, opened.metadata.catalogue_file, opened.metadata.features_file}
    assert {path.name for path in folder.iterdir()} == {"index.json", "index_3.json", "model", *data}


@pytest.mark.slow
def test_a_command_killed_at_any_moment_leaves_local_features_that_fit_the_images(original, tmp_path):
    features = [to_store(each) for each in (b"a0", None, b"a2")]
    for event in count(1):
        folder = shutil.copytree(original, tmp_path / f"index_{event}")
        before = read_metadata(folder)
        index, catalogue = (
            load_index(folder / before.faiss_file),
            open_catalogue(folder / before.catalogue_file, folder),
        )
        metadata = replace(before, **new_files(features=True))
        save = partial(save_generation, folder, before, metadata, index, catalogue, features=features)
        was_killed = killed_at(event, save)
        opened = open_place_index(folder)
        assert (opened.features is None) == (not opened.metadata.features_file)
        if opened.features is not None:
            assert list(opened.features.stored()) == features
        finish_update(folder)
        remove_unused_data(folder)
        current = read_metadata(folder)
        data = set(filter(None, (current.faiss_file, current.catalogue_file, current.features_file)))
        assert {path.name for path in folder.glob("*_*") if path.suffix != ".json"} == data
        if not was_killed:
            break
    assert opened.features is not None and event > 5


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
    save_encoder(folder / "model", other, provenance={}, recalls={})
    table, values = images("a", 3)
    metadata = replace(opened.metadata, encoder=descriptor_metadata(load_encoder(folder / "model")), **new_files())
    index = build_index(stored(tmp_path / "rows", values), "Flat")
    assert save_generation(folder, None, metadata, index, index_images(Catalogue(folder, table)))
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
NAME = r"index.json is not as progeo writes it: expected str matching regex .*places_.*, got {} in faiss_file"
CATALOGUE = r"expected str matching regex .*catalogue_"
SIDES = r"expected .*, got .* in image_size"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"faiss_file": "../outside.faiss"}, NAME.format("'../outside.faiss'")),
        ({"faiss_file": "/tmp/places_1.faiss"}, NAME.format("'/tmp/places_1.faiss'")),
        ({"faiss_file": "..\\places_1.faiss"}, NAME.format(".*")),
        ({"faiss_file": "places_1.faiss\n"}, NAME.format(".*")),
        ({"faiss_file": "places_../../1.faiss"}, NAME.format(".*")),
        ({"faiss_file": "index.json"}, NAME.format("'index.json'")),
        ({"faiss_file": None}, "expected str, got None in faiss_file"),
        ({"catalogue_file": "../catalogue_1.arrow"}, CATALOGUE),
        ({"catalogue_file": "places_1.faiss"}, CATALOGUE),
        ({"catalogue_file": ["catalogue_1.arrow"]}, r"expected str, got \['catalogue_1.arrow'\] in catalogue_file"),
        ({"faiss_file": "places_7.faiss"}, "places_7.faiss is missing: put it back, or build the index anew"),
        ({"new_field": 1}, "index.json is not as progeo writes it: unknown 'new_field'; its fields are kind"),
        ({"image_size": ...}, "missing the field image_size. Put the file back, or build"),
        ({"image_size": [48]}, r"expected array of length 2, got \[48\] in image_size"),
        ({"image_size": "48"}, SIDES),
        ({"image_size": [48, True]}, r"expected int, got True in image_size\[1\]"),
        ({"probes": 0}, "expected int >= 1, got 0 in probes"),
        ({"probes": 10**400}, "expected int <= 2147483647, got 1000.* in probes"),
        ({"images": "3"}, "expected int, got '3' in images"),
        ({"images": 4}, "do not belong together: 4 images .* 3 in catalogue_"),
        ({"kind": None}, "expected str, got None in kind"),
        ({"encoder": []}, r"expected object, got \[\] in encoder"),
        ({"encoder": {}}, "was not built with the encoder in"),
        ({"query_preprocessing": "maj_voting"}, "one of hard_resize, .*, got 'maj_voting' in query_preprocessing"),
        ({"database_preprocessing": ["native"]}, r"one of hard_resize, .*, got \['native'\] in database_preprocessing"),
        ({"generation": -1}, "expected int >= 0, got -1 in generation"),
        ({"format": 2}, "index.json is not a place index in format 1"),
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
        ({"digests": {"places": 3}}, "expected str, got .* in digests"),
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


@pytest.mark.parametrize("name", ["faiss_file", "catalogue_file"])
def test_a_link_out_of_the_folder_is_refused(name, folder, tmp_path):
    file = folder / json.loads((folder / "index.json").read_text())[name]
    outside = file.rename(tmp_path / file.name)
    file.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{file.name} leads out of its folder"):
        open_place_index(folder)


def without_digests(folder):
    """Make the index one of an earlier version."""
    values = json.loads((folder / "index.json").read_text())
    values.pop("digests")
    (folder / "index.json").write_text(json.dumps(values))


def test_an_index_without_digests_is_opened(folder):
    without_digests(folder)
    assert contents(folder) == expected(a=3)


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("name", ["faiss_file", "catalogue_file"])
def test_a_damaged_file_is_refused_by_name(name, has_digests, folder):
    file = folder / json.loads((folder / "index.json").read_text())[name]
    if not has_digests:
        without_digests(folder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=file.name):
        open_place_index(folder)


def test_a_catalogue_of_something_else_is_refused_by_name(folder):
    file = folder / json.loads((folder / "index.json").read_text())["catalogue_file"]
    catalogue = open_catalogue(file, folder)
    Catalogue(folder, catalogue.table.drop_columns("latitude")).save(file)
    with pytest.raises(ValueError, match=f"{file.name} is corrupt: index.json has the digest of other content. Put"):
        open_place_index(folder)
    without_digests(folder)
    with pytest.raises(ValueError, match=f"{file.name} is no catalogue of a place index, it should have path, east"):
        open_place_index(folder)


def test_an_index_that_somebody_sent_leads_no_command_to_other_files(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes in ({"faiss_file": "../mine.faiss"}, {"catalogue_file": "../mine.arrow"}):
        values = json.loads((folder / "index.json").read_text())
        for name, file in changes.items():
            shutil.copy(folder / values[name], folder / file)
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
    metadata = read_metadata(folder)
    (folder / "index_1.json").write_text(
        json.dumps({**json.loads((folder / "index.json").read_text()), "generation": 1})
    )
    for name in ("places_0123456789ab.faiss", "catalogue_0123456789ab.arrow", "places_mine.faiss"):
        (folder / name).write_text("x")
    finish_update(folder)
    assert json.loads((folder / "index.json").read_text())["generation"] == 1
    data = {metadata.faiss_file, metadata.catalogue_file}
    assert {path.name for path in folder.iterdir()} == {
        "index.json",
        "index_1.json",
        "model",
        "places_mine.faiss",
        *data,
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
    for name in ("places_0123456789ab.faiss", "catalogue_0123456789ab.arrow"):
        (tmp_path / "third" / name).touch()  # of a command that was killed
    second(out=tmp_path / "third")
    assert len(list((tmp_path / "third").iterdir())) == 4
