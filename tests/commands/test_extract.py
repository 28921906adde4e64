"""The command that fills the cache of descriptors."""

import os
import shutil
import signal
import time

import pytest
from file_events import Plan
from PIL import Image
from running import run_on_two_processes, start

from progeo.cli import main

PROGRAM = "progeo/__main__.py"
NUM_IMAGES = 200


@pytest.fixture
def images(tmp_path):
    """Images of two colors, of which four files of features are made."""
    (tmp_path / "images").mkdir()
    for name, color in (("a", 50), ("b", 200)):
        Image.new("RGB", (8, 8), (color,) * 3).save(tmp_path / f"{name}.jpg")
    for row in range(NUM_IMAGES):
        shutil.copyfile(tmp_path / f"{'ab'[row % 2]}.jpg", tmp_path / f"images/@{row:03}@0@.jpg")
    return tmp_path / "images"


def words(folder, cache, *others):
    """The command line of an extraction by an encoder without weights."""
    options = ["--num_workers", "0", "--batch_size", "16", *others]
    return list(map(str, ["extract", "thumbnail", "--folder", folder, "--descriptor_cache", cache, *options]))


def features(cache):
    """The content of the files of features in a cache, by name."""
    (folder,) = cache.iterdir()
    assert not list(folder.glob(".*"))
    return {path.name: path.read_bytes() for path in folder.glob("rows_*.npy")}


@pytest.fixture
def expected(images, tmp_path):
    main(words(images, tmp_path / "alone"))
    return features(tmp_path / "alone")


def test_shares_are_extracted_one_by_one_and_found_by_whoever_needs_all(images, expected, tmp_path, capsys):
    assert len(expected) == 4
    for number, made in ((2, [1, 3]), (2, [1, 3]), (1, [0, 1, 2, 3])):
        main(words(images, tmp_path / "shared", "--share", f"{number}/2"))
        assert sorted(features(tmp_path / "shared")) == [f"rows_0000{shard}.npy" for shard in made]
    assert features(tmp_path / "shared") == expected
    (folder,) = (tmp_path / "shared").iterdir()
    assert f"share 1/2 of the descriptors of 200 images written to {folder}" in capsys.readouterr().err
    main(words(images, tmp_path / "shared"))
    said = capsys.readouterr()
    assert f"descriptors of 200 images found in {folder}" in said.err
    assert said.out == f"{folder}\n"


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        (
            ["--share", "0/4"],
            "error: --share must be a number from 1 on and how many there are, such as 3/64, got '0/4'",
        ),
        (["--ray_address", "a:1"], "--ray_address is for --engine ray, got local"),
    ],
)
def test_what_cannot_be_is_refused(others, sentence, images, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(words(images, tmp_path / "cache", *others))
    assert sentence in str(ended.value)
    assert not (tmp_path / "cache").exists()


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_another_machine_finishes_the_work_of_a_process_that_is_killed(images, expected, tmp_path):
    elsewhere = shutil.copytree(images, tmp_path / "mount/images", copy_function=shutil.copyfile)
    stop = Plan(str(tmp_path / "shared"), matching=r"^rename .*rows_00000.npy$", act="SIGSTOP")
    (killed,) = start(PROGRAM, *words(images, tmp_path / "shared"), plan=stop)
    assert killed.wait() is None
    (other,) = start(PROGRAM, *words(elsewhere, tmp_path / "shared"))
    wait_until(lambda: "waiting for 1 files of" in other.said)
    assert f"which process {killed.process} on {os.uname().nodename} writes" in other.said
    assert len(list(tmp_path.glob("shared/*/rows_*.npy"))) == 3
    os.kill(killed.process, signal.SIGKILL)
    assert other.wait() == 0
    assert features(tmp_path / "shared") == expected


@pytest.mark.slow
def test_processes_of_one_command_divide_the_files(images, expected, tmp_path):
    run_on_two_processes(PROGRAM, *words(images, tmp_path / "shared"))
    assert features(tmp_path / "shared") == expected
