"""What a user can do wrong ends with one sentence and no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import progeo
from progeo.cli import COMMANDS, main
from progeo.engine.log import LOGGER, start_log

NEEDED = ["--out", "r", "--data.train_folder", "t", "--validation.folder", "v"]


def failure(*arguments):
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code not in (0, None)
    return str(stop.value.code)


def training(tmp_path, *arguments):
    folders = ["--data.train_folder", tmp_path / "train", "--validation.folder", tmp_path / "val"]
    tiny = ["--model.architecture", "tiny-vit", "--model.weights", "random", "--data.num_workers", "0"]
    return ["--out", tmp_path / "run", *folders, *tiny, *arguments]


@pytest.fixture
def images(tmp_path):
    for folder in ("train", "val/database", "val/queries"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (40, 40)).save(tmp_path / folder / f"@{index % 2 * 100}@0@10@S@@@{index}@@0@@@@@@.jpg")
    return tmp_path


def test_the_command_lists_its_sub_commands_and_each_has_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["train", "prompts", "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "--cells.heading_bin_deg" in shown
    assert "alpha in the paper" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage3"], "there is no command 'stage3'"),
        (["train", "prompts", *NEEDED, "--cells.side", "3"], "side"),
        (["train", "prompts", "--config", "nowhere.yaml"], "does not exist"),
        (["train", "prompts"], "required"),
        (["train", "prompts", *NEEDED, "--prompts.epochs", "0"], "prompts.epochs"),
        (["train", "prompts", *NEEDED, "--data.max_unreadable_fraction", "2"], "data.max_unreadable_fraction"),
        (["train", "prompts", *NEEDED, "--seed", "-1"], "seed must be from 0 to 2**64 - 1, got -1."),
        (["train", "encoder", *NEEDED, "--seed", str(2**64)], "seed must be from 0 to 2**64 - 1, got"),
        (["toy-city", "x", "--seed", "-1"], "-1 does not conform to restriction v>=0"),
        (["prompts", "list"], "there is no command 'prompts list'."),
        (["evalute", "--out", "x"], "there is no command 'evalute'. Did you mean 'evaluate'?"),
        (["dataset", "from_table", "x"], "'dataset from_table'. Did you mean 'dataset from-table'?"),
        (["index"], "there is no command 'index'."),
        (["evaluate", "--encoder", "nowhere", "--folder", "f", "--out", "o"], "There is no encoder in nowhere"),
        (["export", "nowhere", "--out", "x"], "There is no encoder in nowhere"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sentence = failure(*arguments)
    assert words in sentence + capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "prompts", *NEEDED],
        ["train", "encoder", *NEEDED],
        ["evaluate", "--encoder", "e", "--folder", "f", "--out", "o"],
        ["compare", "e", "--folder", "f", "--out", "o"],
        ["pca", "--encoder", "e", "--folder", "f", "--out", "t", "--dim", "8"],
        ["index build", "--encoder", "e", "--folder", "f", "--out", "o"],
        ["index add", "--index", "i", "--folder", "f"],
        ["index calibrate", "--index", "i", "--folder", "f"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_computes_in_full_precision_when_fp16_is_asked_for(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = failure(*command[0].split(), *command[1:], "--mixed_precision", "fp16")
    assert sentence.endswith("error: mixed_precision fp16 needs a GPU, and there is none: give bf16 or no.")
    assert not list(tmp_path.iterdir())


def test_a_sentence_comes_without_a_traceback_and_with_a_status(tmp_path):
    command = [sys.executable, "-m", "progeo.cli", "train", "encoder", *NEEDED]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("progeo stage2: error: There is no folder t")
    assert "Traceback" not in result.stderr


def test_stage_2_without_prompts_says_what_can_be_done(images):
    sentence = failure(
        "train", "encoder", *training(images, "--cells.min_images_per_class", 2, "--cells.num_groups", 1)
    )
    assert "There are no prompts in" in sentence
    assert "--text.weight 0" in sentence


def test_too_many_groups_are_refused_with_how_many_there_are(images):
    sentence = failure("train", "prompts", *training(images, "--cells.min_images_per_class", 2))
    assert "cells.num_groups is 8, but there are 1 groups" in sentence
    assert not (images / "run").exists()  # the folder is free for the corrected command


def test_a_name_outside_the_convention_is_refused_with_the_field(images):
    (images / "train" / "holiday.jpg").touch()
    sentence = failure("train", "prompts", *training(images))
    assert "'holiday.jpg' does not follow the naming convention" in sentence
    assert "field 1 (east)" in sentence


def test_a_name_that_is_not_utf_8_is_spelled_out_wherever_it_comes_from(images):
    odd = os.fsdecode(b"caf\xe9")
    (images / "train").rename(images / odd)
    commands = (
        ["dataset", "groups", images / odd],
        ["localize", images / odd / "photo.jpg", "--index", "nowhere"],
        ["evaluate", "--encoder", "thumbnail", "--folder", images, "--database", odd, "--out", images / "out"],
    )
    for arguments in commands:
        assert "caf\\xe9" in failure(*arguments)


def test_a_broken_image_stops_with_its_path(images):
    broken = images / "train" / "@0@0@10@S@@@99@@0@@@@@@.jpg"
    broken.write_bytes(b"broken")
    settings = ["--cells.min_images_per_class", 2, "--cells.num_groups", 1, "--data.max_unreadable_fraction", 0]
    sentence = failure("train", "prompts", *training(images, *settings, "--prompts.feature_cache", images / "features"))
    assert f"{broken} cannot be decoded" in sentence


def test_a_second_run_in_the_same_folder_is_refused(images):
    cells = ["--cells.min_images_per_class", 2, "--cells.num_groups", 1]
    settings = training(images, *cells, "--prompts.epochs", 1, "--prompts.feature_cache", images / "features")
    main(["train", "prompts", *map(str, settings)])
    assert "already holds a run: add --resume true" in failure("train", "prompts", *settings)
    changed = [*settings, "--resume", "true", "--prompts.temperature", "0.5"]
    assert "prompts.temperature was 1.0, now 0.5" in failure("train", "prompts", *changed)


def test_prompts_of_other_cells_are_refused_with_what_differs(images):
    settings = ["--cells.min_images_per_class", 2, "--cells.num_groups", 1]
    cache = ["--prompts.feature_cache", images / "features", "--prompts.epochs", 1]
    main(["train", "prompts", *map(str, training(images, *settings, *cache))])
    sentence = failure("train", "encoder", *training(images, *settings, "--cells.cell_side_m", 20))
    assert "was made with cells.cell_side_m = 10, now it is 20" in sentence


def test_an_export_does_not_write_over_an_encoder(tmp_path):
    from progeo.export.weights import save_encoder
    from progeo.models.encoder import build_encoder

    save_encoder(tmp_path / "a", build_encoder("tiny-vit", "random"), provenance={}, recalls={})
    main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    assert "already holds model.safetensors, model.json, README.md" in failure(
        "export", tmp_path / "a", "--out", tmp_path / "b"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])  # what is printed fails as Python ends, or at once
def test_a_closed_pipe_is_no_error(unbuffered):
    command, environment = [sys.executable, "-m", "progeo.cli", "--help"], {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_disk_without_room_for_what_is_printed_is_one_sentence(unbuffered):
    command, environment = [sys.executable, "-m", "progeo.cli", "--help"], {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, env={**os.environ, **environment}, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "progeo: error: [Errno 28] No space left on device\n")


def test_work_goes_on_when_nobody_reads_the_log(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        start_log(None)
        with pytest.raises(BrokenPipeError):
            print("nobody", file=closed)
        LOGGER.info("nobody reads this")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())  # so that it can be closed
    start_log(None)


def test_an_interrupted_command_says_so_and_leaves_nothing(tmp_path):
    listing, half = tmp_path / "train_images_paths.txt", tmp_path / "train/@0@0@.jpg"
    half.parent.mkdir()
    half.touch()
    listing.write_text("".join(f"@{row}@0@.jpg\n" for row in range(200_000)).replace("@0@0@.jpg", half.name))

    def interrupt_when_something_is_written(*_):
        if any(path.stat().st_size for path in tmp_path.glob(".train-*")):  # within the writing, not just before
            signal.setitimer(signal.ITIMER_REAL, 0)  # once, and not again in the middle of cleaning up
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt_when_something_is_written)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        assert failure("dataset", "scan", tmp_path / "train") == "progeo dataset scan: interrupted."
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(tmp_path.iterdir()) == {listing, half.parent}


def test_the_version_is_that_of_the_package_as_a_module_too(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"progeo {progeo.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "progeo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"progeo {progeo.__version__}\n"
