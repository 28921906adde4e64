"""Photos that say that they lie on their side: turned upright, or taken as they are stored as published programs do."""

import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from running import metrics_of

from progeo.cli import main
from progeo.commands.localize import localize
from progeo.export.weights import save_encoder
from progeo.features.options import WorkOptions
from progeo.models.encoder import build_encoder

LYING = b"Exif\0\0II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x0112, 3, 1, 6, 0, 0)


def say_lying(path):
    """Write orientation 6 into a JPEG, its pixels left as they are."""
    jpeg = path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(LYING) + 2) + LYING + jpeg[2:])


@pytest.fixture(scope="module")
def lying(tmp_path_factory):
    """Queries that look like the database once they are turned; as they are stored each looks like the next image."""
    folder, rng = tmp_path_factory.mktemp("lying"), np.random.default_rng(0)
    seen = [Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((96, 64), 0) for _ in range(2)]
    database = [*seen, *(image.transpose(Image.Transpose.ROTATE_90).resize((96, 64)) for image in seen)]
    for side in ("database", "queries"):
        (folder / side).mkdir()
    for place, image in enumerate(database):
        image.save(folder / "database" / f"@{550_000 + 100 * place}@4180000@10@S@.jpg", quality=95)
    for place, image in enumerate(seen):
        path = folder / "queries" / f"@{550_001 + 100 * place}@4180000@10@S@.jpg"
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=95)
        say_lying(path)
    return folder


def recall_at_1(out):
    return json.loads((out / "recalls.json").read_text())["recalls"]["R@1"]


def run_command(words, out, cache, *more):
    main([*words, "--out", str(out), "--descriptor_cache", str(cache), "--num_workers", "0", *map(str, more)])


def test_an_evaluation_turns_photos_unless_it_is_told_not_to(lying, tmp_path):
    evaluate = ["evaluate", "--encoder", "thumbnail", "--folder", str(lying), "--recall_ns", "[1,2]"]
    for preprocessing in ("hard_resize", "native"):  # of which batches depend on the shape that a header says
        more = ("--query_preprocessing", preprocessing, "--database_preprocessing", preprocessing)
        run_command(evaluate, tmp_path / "turned", tmp_path / "cache", *more)
        run_command(
            evaluate, tmp_path / "stored", tmp_path / "cache", "--orientation", "ignore", "--fast_decode", *more
        )
        assert (recall_at_1(tmp_path / "turned"), recall_at_1(tmp_path / "stored")) == (100, 0)
    described = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/description.json")]
    assert sorted(each["orientation"] for each in described) == ["exif"] * 4 + ["ignore"] * 4
    assert [each.get("fast_decode", False) for each in described] == [
        each["orientation"] == "ignore" for each in described
    ]
    for words in ("EXIF orientation ignored", "JPEG files at a reduced size"):
        assert words in (tmp_path / "stored" / "report.html").read_text()
        assert words not in (tmp_path / "turned" / "report.html").read_text()


def test_a_comparison_takes_the_same_choice(lying, tmp_path):
    compare = ["compare", "thumbnail", "--folder", str(lying), "--recall_ns", "[1,2]"]
    run_command(compare, tmp_path / "out", tmp_path / "cache", "--orientation", "ignore")
    (line,) = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert line["recalls"]["1"] == 0


@pytest.mark.parametrize("orientation", ["exif", "ignore"])
def test_a_place_index_keeps_the_choice_for_its_photos(lying, tmp_path, orientation):
    encoder = save_encoder(tmp_path / "encoder", build_encoder("tiny-resnet", "random", 48), provenance={}, recalls={})
    folder, index = lying / "database", tmp_path / "index"
    build = ["index", "build", "--folder", str(folder), "--encoder", str(encoder)]
    run_command(build, index, tmp_path / "cache", "--orientation", orientation)
    assert json.loads((index / "index.json").read_text())["orientation"] == orientation
    photos = tuple(sorted((lying / "queries").iterdir()))
    found = localize(photos, index=index, work=WorkOptions(num_workers=0), top=1)
    expected = sorted(path.name for path in folder.iterdir())[0 if orientation == "exif" else 2 :][:2]
    assert [answer.matches[0].path.rpartition("/")[2] for answer in found] == expected
    about = json.loads((index / "index.json").read_text())
    if orientation == "exif":  # as an index from before there was a choice
        del about["orientation"]
        (index / "index.json").write_text(json.dumps(about))
        again = localize(photos, index=index, work=WorkOptions(num_workers=0), top=1)
        assert [each.matches for each in again] == [each.matches for each in found]


def test_a_place_index_is_not_of_reduced_photos(lying, tmp_path):
    build = ["index", "build", "--folder", str(lying / "database"), "--encoder", "thumbnail", "--fast_decode"]
    with pytest.raises(SystemExit, match=r"--fast_decode is not for place indexes, whose photos are decoded in full:"):
        run_command(build, tmp_path / "index", tmp_path / "cache")
    assert not (tmp_path / "index").exists()


def test_both_stages_train_and_validate_on_pixels_as_they_are_stored(city, config, run, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(city / part, tmp_path / part)
        for path in (tmp_path / part).rglob("*.jpg"):
            say_lying(path)
    settings = {
        "out": tmp_path / "run",
        "data.train_folder": tmp_path / "train",
        "data.orientation": "ignore",
        "data.fast_decode": "true",  # which makes no difference to images of the size that the network gets
    }
    words = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    stage1 = ["--prompts.feature_cache", str(tmp_path / "features")]
    stage2 = ["--validation.folder", str(tmp_path / "val"), "--training.epochs", "1"]
    main(["train", "prompts", "--config", str(config), *words, *stage1])
    main(["train", "encoder", "--config", str(config), *words, *stage2])
    for stage, count in (("stage1", None), ("stage2", 2)):
        upright, stored = metrics_of(run / stage), metrics_of(tmp_path / "run" / stage)
        assert stored == upright[:count]
    (described,) = (tmp_path / "features").glob("*/description.json")
    assert json.loads(described.read_text())["fast_decode"] is True
