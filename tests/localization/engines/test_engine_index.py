"""A place index that is searched by Qdrant Edge answers as one that progeo searches."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from indexes import blurred, command, localized
from qdrant_server import qdrant_server
from serving import serving
from small_indexes import images, small_index, stored

from progeo.cli import main
from progeo.features.store import ReorderedRows
from progeo.localization.building import part_format
from progeo.localization.engines.collection import Points
from progeo.localization.engines.connecting import engine_metadata
from progeo.localization.engines.edge import EdgeCollection
from progeo.localization.engines.options import EngineOptions
from progeo.localization.engines.points import part_key, point_id
from progeo.localization.engines.writer import EngineWriter, engine_writer
from progeo.localization.index_folder import commit, new_file, new_parts, read_metadata
from progeo.localization.part_files import NewRows, write_part
from progeo.localization.place_index import index_images, open_place_index
from progeo.localization.removed_rows import with_removed
from progeo.places.catalogue import Catalogue


@pytest.fixture(scope="module")
def folders(city, tmp_path_factory):
    """Images to build an index of, others to add, and photos of both."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(city / "test/database", folder / "first")
    (folder / "second").mkdir()
    for path in sorted((city / "train").iterdir())[::6]:
        shutil.copy(path, folder / "second")
    blurred([*sorted((folder / "first").iterdir()), *sorted((folder / "second").iterdir())], folder / "photos")
    return folder


def build(folders, encoder, cache, out, **settings):
    command("index build", cache, folder=folders / "first", encoder=encoder, out=out, **settings)
    command("index add", cache, folder=folders / "second", index=out)
    return out


@pytest.fixture(scope="module")
def plain(folders, encoder, cache, tmp_path_factory):
    return build(folders, encoder, cache, tmp_path_factory.mktemp("plain") / "index")


@pytest.fixture(
    scope="module", params=["edge", *(pytest.param(each, marks=pytest.mark.slow) for each in (":memory:", "server"))]
)
def index(request, folders, encoder, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("engine") / "index"
    with qdrant_server() as (url, _):
        urls = {"edge": {}, ":memory:": {"engine_url": ":memory:"}, "server": {"engine_url": url}}
        yield build(folders, encoder, cache, out, engine="qdrant", **urls[request.param])


def test_an_engine_gives_the_answers_of_an_index_without_one(index, plain, folders):
    photos = sorted((folders / "photos").iterdir())[::4]
    latitude, longitude = (open_place_index(plain).catalogue.table[name][0] for name in ("latitude", "longitude"))
    for settings in ({}, {"near": f"{latitude},{longitude},60", "heading": "90,100"}):
        for mine, theirs in zip(*(localized(each, *photos, top=8, **settings) for each in (index, plain)), strict=True):
            assert [match.path for match in mine.matches] == [match.path for match in theirs.matches]
            distances = [[match.distance for match in result.matches] for result in (mine, theirs)]
            assert distances[0] == pytest.approx(distances[1], abs=1e-4)
            assert mine.matches[0].position == theirs.matches[0].position
            assert 0 < len(mine.matches) < 8 or not settings


def test_an_engine_index_is_calibrated_as_one_without_an_engine(index, plain, folders, cache, tmp_path):
    found = []
    for number, each in enumerate((index, plain)):
        copied = shutil.copytree(each, tmp_path / str(number))
        command("index calibrate", cache, folder=folders / "photos", index=copied)
        found.append(read_metadata(copied).calibration)
    assert found[0].num_correct == found[1].num_correct
    assert found[0].error == pytest.approx(found[1].error, abs=0.02)


def test_its_folder_holds_the_images_and_no_descriptors(index):
    metadata = read_metadata(index)
    assert [sorted(path.name for path in (index / part.name).iterdir()) for part in metadata.parts] == [
        ["catalogue.arrow", "paths.npy"]
    ] * 2
    assert not {path.name for path in index.iterdir()} - {
        *("index.json", "index_1.json", "model", "part_00000", "part_00001", "qdrant")
    }
    assert metadata.kind == "qdrant"


def test_points_of_a_command_that_was_killed_are_deleted_by_the_next_one(folders, encoder, cache, tmp_path):
    index = tmp_path / "index"
    command("index build", cache, folder=folders / "first", encoder=encoder, out=index, engine="qdrant")
    collection = open_place_index(index).store.collection
    count = read_metadata(index).num_rows
    assert collection.count(None) == count
    part, width = "0123456789abcdef", collection.contents().width
    ids = [point_id(part, row) for row in range(7)]
    collection.upsert(Points(ids, np.zeros((7, width), np.float32), [{"part": part}] * 7))
    assert collection.count(None) == count + 7
    (index / "part_00099").mkdir()  # of another command, which stores its points next
    engine_writer(index, read_metadata(index)).tidy(index)
    assert collection.count(None) == count + 7
    command("index add", cache, folder=folders / "second", index=index)
    assert collection.count(None) == read_metadata(index).num_rows


def test_images_that_are_committed_while_points_are_deleted_keep_theirs(small_encoder, tmp_path):
    engine = engine_metadata(EngineOptions(engine="qdrant"), tmp_path / "index", "me")
    index = small_index(tmp_path / "index", small_encoder, tmp_path, count=9, kind="qdrant", engine=engine)
    metadata = read_metadata(index)
    with new_file(index, "removed", ".npy") as path:
        assert commit(index, metadata, with_removed(metadata, path, np.array([4])))
    table, values = images("b", 3)

    class Meanwhile(EdgeCollection):
        def delete_points(self, ids):
            before = read_metadata(index)
            assert commit(index, before, replace(before, parts=(*before.parts, added)))
            super().delete_points(ids)

    collection = Meanwhile(index / "qdrant")
    with new_parts(index, 1) as (folder,):
        rows = NewRows(
            ReorderedRows(stored(tmp_path / "added", values), np.arange(3)),
            lambda first, last: index_images(Catalogue(tmp_path, table[first:last])),
        )
        added = write_part(folder, (0, 3), rows, part_format(index, metadata))
        EngineWriter(collection, engine, "encoder").tidy(index)
    assert collection.parts() == {part_key(read_metadata(index).parts[0].engine_id): 8, part_key(added.engine_id): 3}


def test_removed_images_are_not_found_and_their_points_deleted(folders, encoder, cache, tmp_path):
    index = build(folders, encoder, cache, tmp_path / "index", engine="qdrant")
    collection, before = open_place_index(index).store.collection, read_metadata(index)
    main(["index", "remove", str(index), "--folder", str(folders / "first")])
    assert read_metadata(index).images == before.parts[1].rows
    assert collection.parts().get(part_key(before.parts[0].engine_id), 0) == 0
    assert collection.count(None) == before.parts[1].rows
    (result,) = localized(index, next((folders / "first").iterdir()), top=50)
    assert {Path(match.path).parent for match in result.matches} == {folders / "second"}
    command("index add", cache, folder=folders / "first", index=index)
    assert collection.count(None) == before.num_rows == read_metadata(index).images
    main(["index", "check", str(index)])


def test_an_engine_index_is_not_compacted(index):
    with pytest.raises(SystemExit, match="is searched by qdrant, which compacts what it holds itself"):
        main(["index", "compact", str(index)])


def test_an_engine_that_is_down_is_one_sentence_and_changes_nothing(folders, encoder, cache, tmp_path):
    options = {"engine": "qdrant", "engine_url": "http://127.0.0.1:1"}
    with pytest.raises(
        SystemExit, match=r"cannot be reached \(.*\): start it, or correct its address, which is --engine_url"
    ):
        command("index build", cache, folder=folders / "first", encoder=encoder, out=tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_a_folder_with_other_files_is_refused_before_images_are_read(encoder, cache, tmp_path):
    with pytest.raises(SystemExit, match=r"--engine_url .* is no folder of Qdrant Edge: name a new or an empty one"):
        options = {"engine": "qdrant", "engine_url": encoder}
        command("index build", cache, folder=tmp_path, encoder=encoder, out=tmp_path / "index", **options)


@pytest.mark.slow
def test_a_server_that_stops_between_two_commands_loses_nothing(folders, encoder, cache, tmp_path):
    index = tmp_path / "index"
    with qdrant_server() as (url, _):
        options = {"engine": "qdrant", "engine_url": url}
        command("index build", cache, folder=folders / "first", encoder=encoder, out=index, **options)
        before = (index / "index.json").read_bytes()
    with pytest.raises(SystemExit, match="cannot be reached"):
        command("index add", cache, folder=folders / "second", index=index)
    assert (index / "index.json").read_bytes() == before
    with qdrant_server() as (url, _):
        metadata = json.loads(before)
        metadata["engine"]["url"] = url
        (index / "index.json").write_text(json.dumps(metadata))
        with pytest.raises(SystemExit, match="There is no collection index of the Qdrant server at"):
            command("index add", cache, folder=folders / "second", index=index)


@pytest.mark.slow
def test_a_service_whose_engine_stops_asks_to_try_again_later(folders, encoder, cache, tmp_path):
    index, photo = tmp_path / "index", next((folders / "photos").iterdir())
    with ExitStack() as stack:
        with qdrant_server() as (url, _):
            options = {"engine": "qdrant", "engine_url": url}
            command("index build", cache, folder=folders / "first", encoder=encoder, out=index, **options)
            client = stack.enter_context(serving(index))
            assert client.post("/localize", files={"photos": photo.read_bytes()}).status_code == 200
        answer = client.post("/localize", files={"photos": photo.read_bytes()})
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "The index cannot be searched at the moment: try again later.",
    )
