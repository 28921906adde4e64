"""Images are removed from a place index, and it is compacted and checked."""

import shutil
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from running import killed_at, run_on_two_processes
from small_indexes import add, contents, expected, images, small_index, stored

from progeo.cli import main
from progeo.files import read_json
from progeo.localization.adding import add_images
from progeo.localization.checking import check_place_index
from progeo.localization.compacting import compact_place_index
from progeo.localization.index_folder import finish_update, read_metadata, remove_unused_data
from progeo.localization.place_index import located_images, open_place_index
from progeo.localization.removing import in_folder, near_position, remove_from_place_index
from progeo.places.catalogue import Catalogue
from progeo.places.nearby import Near
from progeo.remote_files import RemotePath


def without(names, **counts):
    return {name: row for name, row in expected(**counts).items() if name not in names}


def paths_of(folder, names):
    paths = open_place_index(folder).catalogue.table["path"].to_pylist()
    return [path for path in paths if path.rpartition("/")[2] in names]


def test_removed_images_are_found_no_more_and_count_no_more(folder, tmp_path, capsys):
    add(open_place_index(folder), tmp_path, "b")
    (tmp_path / "paths.txt").write_text("\n".join([*paths_of(folder, ("a1.jpg", "b0.jpg")), "/unknown.jpg"]))
    main(["index", "remove", str(folder), "--paths", str(tmp_path / "paths.txt")])
    assert contents(folder) == without(("a1.jpg", "b0.jpg"), a=3, b=2)
    opened = open_place_index(folder)
    assert (opened.metadata.images, len(opened.images), opened.store.count()) == (3, 3, 3)
    assert opened.removed.tolist() == [1, 3]
    _, values = images("a", 3)
    assert opened.search(values[1:2], min_count=3).rows[0, :3].tolist() in ([0, 2, 4], [2, 0, 4])
    main(["index", "remove", str(folder), "--paths", str(tmp_path / "paths.txt")])
    assert "these images are removed from" in capsys.readouterr().err
    before = {path.name for path in folder.iterdir()}
    main(["index", "remove", str(folder), "--near", "10.002,20,5"])
    assert contents(folder) == without(("a1.jpg", "b0.jpg", "a2.jpg"), a=3, b=2)
    assert len({path.name for path in folder.iterdir()} - before) == 2  # a generation, and another file of removed rows


def test_images_of_a_folder_are_removed_whether_or_not_it_exists(folder, tmp_path):
    add(open_place_index(folder), tmp_path, "b")
    prefix = paths_of(folder, ("a0.jpg",))[0].rpartition("/")[0]
    with pytest.raises(ValueError, match="has none of these images: nothing was removed"):
        remove_from_place_index(folder, in_folder(tmp_path / "other"))
    with pytest.raises(ValueError, match="has none of these images"):
        remove_from_place_index(folder, in_folder(tmp_path / prefix[:-1]))  # the beginning of a name is no folder
    with pytest.raises(ValueError, match=r"These are all images of .*: remove the folder itself"):
        remove_from_place_index(folder, in_folder(tmp_path.parent))
    assert contents(folder) == expected(a=3, b=2)


@pytest.mark.parametrize("way", ["URL", "catalogue", "list"])
def test_images_behind_a_url_are_removed(way, folder, tmp_path):
    root = RemotePath("tar://streets::s3://bucket/city.tar")
    table, values = images("b", 2)
    there = Catalogue(root, table)
    add_images(open_place_index(folder), located_images(there), stored(tmp_path / "rows_b", values))
    there.save(tmp_path / "there.arrow", {"root": str(root)})
    (tmp_path / "list.txt").write_text("\n".join(there.full_paths().to_pylist()), encoding="utf-8")
    option = {
        "URL": f"--folder={root}",
        "catalogue": f"--folder={tmp_path}/there",
        "list": f"--paths={tmp_path}/list.txt",
    }
    main(["index", "remove", str(folder), option[way]])
    assert read_metadata(folder).images == 3
    with pytest.raises(ValueError, match="has none of these images"):
        remove_from_place_index(folder, in_folder(RemotePath("tar://streets::s3://bucket/other.tar")))


def test_a_removed_image_can_be_added_again(folder, tmp_path):
    add(open_place_index(folder), tmp_path, "b", 3)
    remove_from_place_index(folder, near_position(Near(10.0, 20.0, 60)))  # a0 and b0
    assert contents(folder) == without(("a0.jpg", "b0.jpg"), a=3, b=3)
    add(open_place_index(folder), tmp_path, "b", 3)
    assert contents(folder) == without(("a0.jpg",), a=3, b=3)
    assert [part.rows for part in read_metadata(folder).parts] == [3, 3, 1]


def test_two_commands_that_remove_at_once_both_do(folder, tmp_path):
    add(open_place_index(folder), tmp_path, "b")
    first = near_position(Near(10.0, 20.0, 60))
    raced = []

    def second(part):
        if not raced:
            raced.append(True)
            remove_from_place_index(folder, first)
        return near_position(Near(10.002, 20.0, 60))(part)

    remove_from_place_index(folder, second)
    assert contents(folder) == without(("a0.jpg", "b0.jpg", "a2.jpg"), a=3, b=2)


def test_many_parts_hold_no_file_open_and_are_named_by_metadata_that_are_read_once(
    folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("progeo.localization.adding._MANY_PARTS", 4)
    for prefix in "bcde":
        assert "run `progeo index compact` to search faster" not in caplog.text
        add(open_place_index(folder), tmp_path, prefix)
    assert f"{folder} has 5 parts, and its images need 1" in caplog.text
    before = len([*Path("/proc/self/fd").iterdir()])
    opened = open_place_index(folder)
    assert (len(opened.parts), len([*Path("/proc/self/fd").iterdir()])) == (5, before)
    read = []
    monkeypatch.setattr(
        "progeo.localization.index_metadata.read_json", lambda path: read.append(path) or read_json(path)
    )
    remove_unused_data(folder)
    assert [path.name for path in read] == ["index.json", "index_4.json"]


def test_an_index_is_compacted_to_one_part_in_the_order_of_cells(folder, tmp_path, capsys):
    for prefix in "bc":
        add(open_place_index(folder), tmp_path, prefix)
    remove_from_place_index(folder, near_position(Near(10.001, 20.0, 60)))  # a1, b1 and c1
    main(["index", "compact", str(folder)])
    assert contents(folder) == without(("a1.jpg", "b1.jpg", "c1.jpg"), a=3, b=2, c=2)
    metadata = read_metadata(folder)
    assert [part.rows for part in metadata.parts] == [4]
    assert metadata.data_names == {metadata.parts[0].name}
    latitude = open_place_index(folder).catalogue.table["latitude"].to_pylist()
    assert latitude == [10.0, 10.0, 10.0, 10.002]
    main(["index", "compact", str(folder)])
    assert "is compact already: 1 part, no removed images" in capsys.readouterr().err
    assert read_metadata(folder) == metadata


def test_images_added_while_an_index_is_compacted_are_there(folder, tmp_path):
    add(open_place_index(folder), tmp_path, "b")
    second = open_place_index(folder)
    compact_place_index(folder)
    add(second, tmp_path, "c")  # which knows the former parts only
    add(second, tmp_path, "b", 3)
    assert contents(folder) == expected(a=3, b=3, c=2)


@pytest.mark.parametrize("verb", ["add", "remove", "compact", "check"])
def test_files_that_another_command_replaces_meanwhile_are_no_fault(verb, small_encoder, tmp_path, monkeypatch):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=5, kind="IVF2,Flat")
    add(open_place_index(folder), tmp_path, "b", 20)
    module, function = {
        "add": ("adding", "part_format"),
        "remove": ("removing", "open_parts"),
        "compact": ("compacting", "open_parts"),
        "check": ("checking", "check_file"),
    }[verb]
    original, raced = getattr(import_module(f"progeo.localization.{module}"), function), []

    def second_to_compact(*given, **named):
        if not raced:
            raced.append(True)
            compact_place_index(folder)  # removes the parts, and the index that was trained for few rows
        return original(*given, **named)

    monkeypatch.setattr(f"progeo.localization.{module}.{function}", second_to_compact)
    changes = {
        "add": (lambda: add(opened, tmp_path, "c"), expected(a=5, b=20, c=2)),
        "remove": (
            lambda: remove_from_place_index(folder, near_position(Near(10.0, 20.0, 60))),
            without(("a0.jpg", "b0.jpg"), a=5, b=20),
        ),
        "compact": (lambda: compact_place_index(folder), expected(a=5, b=20)),
        "check": (lambda: check_place_index(folder), expected(a=5, b=20)),
    }
    opened = open_place_index(folder)
    change, after = changes[verb]
    change()
    assert raced and contents(folder) == after


def test_local_features_and_float16_rows_survive_compaction(small_encoder, tmp_path):
    features = [f"a{row}".encode() for row in range(40)]
    folder = small_index(
        tmp_path / "index", small_encoder, tmp_path, count=40, kind="IVF2,Flat", features=features, part_rows=15
    )
    assert [part.rows for part in read_metadata(folder).parts] == [13, 13, 14]
    before = open_place_index(folder)
    remove_from_place_index(folder, near_position(Near(10.0, 20.0, 60)))
    compact_place_index(folder)
    opened = open_place_index(folder)
    assert [part.metadata.rows for part in opened.parts] == [13, 13, 13]
    names = [path.rpartition("/")[2] for path in opened.catalogue.table["path"].to_pylist()]
    assert [each.values.decode() + ".jpg" for each in opened.features.stored()] == names
    rows = [np.concatenate([part.descriptors for part in each.parts]) for each in (before, opened)]
    assert rows[1].dtype == np.float16 and rows[1].tolist() == rows[0][1:].tolist()
    found = opened.store.search(rows[1].astype(np.float32), 1, probes=2, refine=0)
    assert found.rows[:, 0].tolist() == list(range(39))


def test_an_index_that_outgrew_its_training_is_trained_again(small_encoder, tmp_path):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=20, kind="IVF2,Flat")
    before = read_metadata(folder)
    add(open_place_index(folder), tmp_path, "b", 50)
    compact_place_index(folder)
    assert read_metadata(folder).trained_file == before.trained_file
    add(open_place_index(folder), tmp_path, "c", 50)
    compact_place_index(folder)
    metadata = read_metadata(folder)
    assert metadata.trained_file != before.trained_file and metadata.trained_on == 120
    assert contents(folder) == expected(a=20, b=50, c=50)


@pytest.mark.parametrize("kind_is_default", [True, False])
def test_the_kind_of_an_index_is_chosen_again_unless_it_was_given(
    kind_is_default, small_encoder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("progeo.evaluation.kinds._MAX_EXACT", 60)
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=50, kind_is_default=kind_is_default)
    add(open_place_index(folder), tmp_path, "b", 50)
    main(["index", "compact", str(folder)])
    said, metadata = capsys.readouterr().err, read_metadata(folder)
    assert ("100 rows are compressed as IVF16,RaBitQ" in said) == kind_is_default
    chosen = ("IVF16,RaBitQ", 4, 200, 100) if kind_is_default else ("Flat", 1, 0, 50)
    assert (metadata.kind, metadata.probes, metadata.refine, metadata.trained_on) == chosen
    assert bool(metadata.trained_file) == kind_is_default
    if kind_is_default:
        opened = open_place_index(folder)
        values = opened.parts[0].descriptors.astype(np.float32)
        assert opened.search(values, probes=16).rows[:, 0].tolist() == list(range(100))
    main(["index", "compact", str(folder)])
    assert "is compact already: 1 part, no removed images" in capsys.readouterr().err
    remove_from_place_index(folder, near_position(Near(10.0, 20.0, 3000)))  # the first 27 of a and b
    compact_place_index(folder)
    assert (read_metadata(folder).kind, read_metadata(folder).trained_file) == ("Flat", "")
    assert contents(folder) == without([f"{name}{row}.jpg" for name in "ab" for row in range(27)], a=50, b=50)


def test_an_index_is_unchanged_when_compacting_it_fails(small_encoder, tmp_path, full_disk):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=300)
    add(open_place_index(folder), tmp_path, "b", 300)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with full_disk(), pytest.raises(SystemExit, match=r"descriptors\.npy could not be written"):
        main(["index", "compact", str(folder)])
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert contents(folder) == expected(a=300, b=300)


def test_a_check_finds_what_opening_does_not_read(small_encoder, tmp_path, monkeypatch, capsys):
    folder = small_index(tmp_path / "index", small_encoder, tmp_path, count=300)
    main(["index", "check", str(folder)])
    said = capsys.readouterr().err
    assert "300 images in 1 part, 0.4 MB, 0 removed: all files are as they were written" in said
    monkeypatch.setattr("progeo.localization.stored_files.WHOLE_BYTES", 1000)
    monkeypatch.setattr("progeo.localization.stored_files._SAMPLE_BYTES", 100)
    folder = small_index(tmp_path / "sampled", small_encoder, tmp_path, count=300)
    file = folder / "part_00000/descriptors.npy"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    open_place_index(folder)
    with pytest.raises(ValueError, match=r"part_00000/descriptors.npy is corrupt: index.json has the digest of other"):
        check_place_index(folder)
    content[50] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"descriptors.npy is corrupt: index.json has the digest of other content"):
        open_place_index(folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Images to remove are chosen by one of --folder, --paths and --near: give one of them"),
        (["--near", "1,2,3", "--folder", "x"], "chosen by one of --folder, --paths and --near"),
        (["--near", "1,2"], "`near` must be LAT,LON,RADIUS_M"),
        (["--near", "0,0,5"], "has none of these images: nothing was removed"),
        (["--paths", "empty.txt"], "--paths empty.txt names no image: it should have a path on each line"),
    ],
)
def test_mistakes_in_removing_end_in_a_sentence(words, sentence, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(SystemExit, match=sentence.replace("`near`", "--near")):
        main(["index", "remove", str(folder), *words])


@pytest.mark.slow
def test_two_processes_write_the_parts_that_one_alone_writes(city, encoder, cache, tmp_path):
    words = ["index", "build", encoder, "--folder", city / "train", "--part_rows", 20, "--faiss", "IVF4,Flat"]
    words += ["--descriptor_cache", cache, "--num_workers", 0]
    main([*map(str, words), "--out", str(tmp_path / "one")])
    run_on_two_processes("progeo/__main__.py", *words, "--out", tmp_path / "two")
    one, two = (read_metadata(tmp_path / name) for name in ("one", "two"))
    assert one.parts == two.parts and [part.rows for part in one.parts] == [16, 17, 17, 17, 17]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"index.json", "model", *two.data_names}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["add", "remove", "compact"])
def test_a_command_killed_at_any_moment_leaves_the_index_before_or_after(change, folder, tmp_path):
    add(open_place_index(folder), tmp_path, "b")
    remove_from_place_index(folder, near_position(Near(10.002, 20.0, 60)))  # a2
    before = without(("a2.jpg",), a=3, b=2)
    opened = open_place_index(folder)
    changes = {
        "add": (lambda at: add(open_place_index(at), tmp_path, "c"), before | expected(c=2)),
        "remove": (
            lambda at: remove_from_place_index(at, near_position(Near(10.0, 20.0, 60))),
            without(("a0.jpg", "a2.jpg", "b0.jpg"), a=3, b=2),
        ),
        "compact": (compact_place_index, before),
    }
    run, after = changes[change]
    assert len(opened.parts) == 2
    outcomes = []
    for event in count(1):
        at = shutil.copytree(folder, tmp_path / "copies" / f"{event}")
        was_killed = killed_at(event, partial(run, at))
        finish_update(at)
        found = contents(at)
        assert found in (before, after)
        outcomes.append(found == after)
        if found == before:
            run(at)  # again
            assert contents(at) == after
        if not was_killed:
            break
        shutil.rmtree(at)
    assert event > 10 and outcomes[-1]
    assert outcomes == sorted(outcomes)
