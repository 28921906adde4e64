"""What a user can do wrong ends with one sentence and no traceback."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from shutil import which

import pytest
import torch
from PIL import Image
from running import available, parsed

import progeo
from progeo.cli import COMMANDS, main
from progeo.config.examples import EXAMPLES
from progeo.config.help import COMMON as OF_EVERY_COMMAND
from progeo.config.settings import settings_of
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.log_format import VARIABLE

PROMPTS = ["train", "prompts", "--out", "r", "--data.train_folder", "t"]
ENCODER = ["train", "encoder", "--out", "r", "--data.train_folder", "t", "--validation.folder", "v"]


def failure(*arguments):
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code not in (0, None)
    return str(stop.value.code)


def usage_failure(capsys, *arguments):
    """The sentence about a wrong command line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert not shown.out and shown.err.count("\n") == 1
    return shown.err.rstrip("\n")


def training(tmp_path, *arguments):
    folders = ["--data.train_folder", tmp_path / "train", "--validation.folder", tmp_path / "val"]
    tiny = ["--model.architecture", "tiny-vit", "--model.weights", "random", "--data.num_workers", "0"]
    return ["train", "encoder", "--out", tmp_path / "run", *folders, *tiny, *arguments]


def learning(tmp_path, *arguments):
    """The same for stage 1, without the validation."""
    words = training(tmp_path, *arguments)
    at = words.index("--validation.folder")
    return ["train", "prompts", *words[2:at], *words[at + 2 :]]


@pytest.fixture
def images(tmp_path):
    for folder in ("train", "val/database", "val/queries"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (40, 40)).save(tmp_path / folder / f"@{index % 2 * 100}@0@10@S@@@{index}@@0@@@@@@.jpg")
    return tmp_path


def test_the_command_lists_its_commands_and_a_group_those_of_the_group(capsys):
    for words in ([], ["--help"], ["-h"]):
        main(words)
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in COMMANDS)
    for words in (["index"], ["index", "--help"]):
        main(words)
        shown = capsys.readouterr().out
        assert "index calibrate" in shown and "localize" not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_an_example_and_shows_every_option_with_its_text_and_no_python_type(name, capsys):
    main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert shown.splitlines()[2] == f"  {COMMANDS[name].example}"
    for setting in settings_of(COMMANDS[name].load()).values():
        assert setting.text, setting.name
        assert f"  --{setting.name}" in shown
    assert " ".join(setting.text.split()) in " ".join(shown.split())
    assert not re.search(r"Positive|Literal|<class|Union|typing|NoneType", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_has_a_line_for_each_option_and_no_group_is_long(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main([*name.split(), "-h"])
    groups = capsys.readouterr().out.split("\n\n")[3:-1]
    options = [line for group in groups for line in group.splitlines()[1:]]
    names = [f"--{setting}" for setting in settings_of(COMMANDS[name].load())]
    names += [option.split()[0] for option in OF_EVERY_COMMAND]
    assert sorted(line.split()[0] for line in options) == sorted(names)
    assert all(len(line) <= max(100, len(line[2:].split("  ")[0]) + 34) for line in options)
    assert max(map(len, map(str.splitlines, groups))) <= 16


def test_short_help_shows_the_beginning_of_a_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["index", "compact", "-h"])
    shown = capsys.readouterr().out
    assert "\n  --index PATH         " in shown and "progeo index compact --help shows" in shown
    main(["demo", "--help"])
    assert "(default: 2000)" in capsys.readouterr().out
    main(["demo", "-h"])
    assert re.search(r"\n  --quiet +Log only warnings, and show no bars\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *((name, command.example) for name, command in COMMANDS.items()),
        *((name, line) for name, examples in EXAMPLES.items() for line in examples.values()),
    ],
)
def test_every_example_of_a_command_is_one_that_it_takes(name, line):
    words = [word for word in shlex.split(line) if word not in OF_EVERY_COMMAND]
    assert words[: 1 + len(name.split())] == ["progeo", *name.split()]
    assert parsed(name, *words[1 + len(name.split()) :])


def test_help_needs_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom progeo.cli import COMMANDS, main\n"
        "for name in COMMANDS: main([*name.split(), '--help'])\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_stage_1_lists_what_it_reads_alone(capsys):
    main(["train", "prompts", "--help"])
    shown = capsys.readouterr().out
    assert "--prompts.temperature" in shown and "alpha in the paper" in shown
    assert not re.search(r"--(training|head|text|triplet|augmentation|encoder|validation|test)\.", shown)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stage3"], "there is no command 'stage3'. See progeo --help."),
        (["--quiet", "demo"], "the first word is a command, got --quiet: give options after it"),
        (["prompts", "list"], "there is no command 'prompts list'."),
        (["evalute", "--out", "x"], "there is no command 'evalute'. Did you mean 'evaluate'?"),
        (["dataset", "from_table", "x"], "there is no command 'dataset from_table'."),
        (["dataset", "from-table", "x"], "dataset from-table is now called 'dataset import table'."),
        (["train", "promtps", "--config", "x"], "there is no command 'train promtps'. Did you mean 'train prompts'?"),
        (["stage1", "--config", "x"], "stage1 is now called 'train prompts'."),
        ([*PROMPTS, "--cells.side", "3"], "--cells.side is no option. Did you mean --cells.cell_side_m"),
        ([*ENCODER, "--epochs", "3"], "--epochs is no option. Did you mean --training.epochs?"),
        ([*ENCODER, "--prompts.epochs", "3"], "--prompts.epochs is no option of this command, but of `progeo train`"),
        ([*ENCODER, "-v"], "-v is no option. See --help."),
        (["demo", "--quite"], "--quite is no option. Did you mean --quiet?"),
        (["demo", "--log-format", "json"], "--log-format is no option. Did you mean --log_format?"),
        (["demo", "--json=true"], "--json takes no value: give it alone."),
        ([*ENCODER, "--config"], "--config needs a file of settings."),
        (PROMPTS[:4], "--data.train_folder is required: Folder of training images."),
        ([*PROMPTS, "--prompts.epochs", "0"], "--prompts.epochs must be a whole number >0, got 0."),
        ([*PROMPTS, "--cells.num_groups"], "--cells.num_groups needs a value: Number of groups"),
        (
            [*PROMPTS, "--prompts.epochs", "0", "--data.max_unreadable_fraction", "2"],
            "got 0. --data.max_unreadable_fraction must be a number ≥0 and ≤1, got 2.",
        ),
        ([*PROMPTS, "--mixed_precision", "int8"], "--mixed_precision must be one of no, fp16, bf16, got int8."),
        (["demo", "--seed", "-1"], "--seed must be a whole number ≥0, got -1."),
        (["evaluate", "e", "more", "--folder", "f", "--out", "o"], "'more' is one word too many"),
        (["evaluate", "e", "--encoder", "e", "--folder", "f", "--out", "o"], "are the same setting: give it once."),
        (["export", "e", "--to", "x"], "--to is now called --out."),
        (
            ["dataset", "import", "csv", "x", "--out", "o"],
            "--kind must be one of table, photos, dbstruct, arrays, msls",
        ),
        (
            ["dataset", "import", "table", "x", "--out", "o", "--columns", "photo"],
            "--columns takes NAME=VALUE ..., got photo.",
        ),
        (["--print_completion", "cmd"], "--print_completion takes bash, zsh, tcsh"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence in usage_failure(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*PROMPTS, "--config", "nowhere.yaml"], "nowhere.yaml does not exist; by name there are cosplace_resnet18, "),
        ([*PROMPTS, "--seed", "-1"], "--seed must be from 0 to 2**64 - 1, got -1."),
        ([*ENCODER, "--seed", str(2**64)], "--seed must be from 0 to 2**64 - 1, got"),
        ([*ENCODER, "--augmentation.hue", "0.7"], "--augmentation.hue must be from 0 to 0.5, got 0.7."),
        (["evaluate", "nowhere", "--folder", "f", "--out", "o"], "There is no encoder in nowhere"),
        (
            ["evaluate", "open_clip:RN5:openai", "--folder", "f", "--out", "o"],
            "--encoder open_clip:RN5:openai cannot be built: architecture 'RN5'",
        ),
        (["export", "nowhere", "--out", "x"], "There is no encoder in nowhere"),
        (["export", "e", "--fp16"], "--fp16 is for the format onnx, not for safetensors: leave it out."),
        (
            ["dataset", "import", "photos", "x", "--out", "o", "--name", "n"],
            "--name is not for photos, which takes no options.",
        ),
        (["dataset", "import", "arrays", "x", "--out", "o"], "arrays needs --images"),
        (["dataset", "groups", "t", "--cells.heading_bin_deg", "7"], "There is no folder t"),
    ],
)
def test_mistakes_end_in_a_sentence_that_names_the_flag(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in failure(*arguments)
    assert not list(tmp_path.iterdir())


def test_training_refuses_settings_of_stage_2_before_stage_1(images):
    words = training(images, "--cells.min_images_per_class", 2, "--cells.num_groups", 1)[2:]
    for wrong, sentence in (
        (["--training.micro_batches", 5], "into --training.micro_batches 5"),
        (["--validation.folder", images / "nowhere"], "There is no folder"),
        (["--test.folder", images / "nowhere"], "There can be no final test on --test.folder"),
        (["--head.weight", 0, "--text.weight", 0], "there is no loss to train with"),
        (["--encoder.descriptor_dim", 512], "--encoder.descriptor_dim cannot be 512"),
        (["--encoder.frozen", "[conv2]"], "--encoder.frozen has 'conv2', which is no layer"),
    ):
        assert sentence in failure("train", *words, *wrong)
        assert not (images / "run").exists()


def test_processes_that_would_each_train_alone_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each would work alone: set ACCELERATE_USE_CPU=true"):
        start_accelerator("no")


def test_an_argument_that_an_error_names_is_the_flag_of_the_command(images):
    folder = images / "train"
    assert "error: --cells.heading_bin_deg must divide 360, got 7." in failure(
        "dataset", "groups", folder, "--cells.heading_bin_deg", 7
    )


@pytest.fixture(scope="module")
def bash_completion(tmp_path_factory):
    with redirect_stdout(StringIO()) as script:
        main(["--print_completion", "bash"])
    (path := tmp_path_factory.mktemp("completion") / "progeo.bash").write_text(script.getvalue())
    return path


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("progeo loc", "localize"),
        ("progeo index cal", "calibrate"),
        ("progeo dataset sp", "split"),
        ("progeo train en", "encoder"),
        ("progeo train --cells.h", "--cells.heading_bin_deg"),
        ("progeo train encoder --training.op", "--training.optimizer"),
        ("progeo index calibrate --plu", "--plugin"),
        ("progeo export runs/city --format on", "onnx"),
        ("progeo evaluate --rerank ma", "matching"),
    ],
)
def test_bash_completes_commands_options_and_choices(bash_completion, line, offers):
    complete = 'source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_progeo; echo $COMPREPLY'
    done = subprocess.run(["bash", "-c", complete, "bash", bash_completion, line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{offers}\n", "")


def test_bash_completes_files_where_a_setting_is_a_path(bash_completion):
    script = bash_completion.read_text()
    assert "_shtab_progeo_evaluate___folder_COMPGEN=_shtab_compgen_files" in script
    assert "_shtab_progeo_evaluate___probes_COMPGEN" not in script


@pytest.mark.skipif(which("zsh") is None, reason="needs zsh")
def test_zsh_completes_commands(capsys):
    main(["--print_completion", "zsh"])
    script = capsys.readouterr().out
    assert all(f"{name.rpartition(' ')[2]}:" in script for name in COMMANDS)
    load = 'autoload -Uz compinit; compinit -D -u; eval "$(cat)"; echo ${_comps[progeo]}; whence -w ${_comps[progeo]}'
    done = subprocess.run(["zsh", "-fc", load], input=script, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("_shtab_progeo\n_shtab_progeo: function\n", "")


def test_results_go_to_stdout_in_words_or_json_and_the_log_to_stderr(images, capsys):
    words = ["dataset", "groups", str(images / "train"), "--cells.min_images_per_class", "2"]
    main(words)
    assert "12 images; 12 of them in the 1 group " in capsys.readouterr().out
    main([*words, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["images"], shown["rows"][0]["classes"]) == (12, 2)
    scan = ["dataset", "scan", str(images / "train")]
    main(scan)
    loud = capsys.readouterr()
    main([*scan, "--quiet"])
    quiet = capsys.readouterr()
    assert loud.out == quiet.out == f"{images / 'train.arrow'}\n"
    assert "12 images of" in loud.err and quiet.err == ""


def test_the_traceback_of_an_error_is_shown_when_asked_for(capsys):
    failure("export", "nowhere")
    assert "Traceback" not in capsys.readouterr().err
    failure("export", "nowhere", "--verbose")
    assert "Traceback" in capsys.readouterr().err


PLAN = """group  classes  images  images of a class: min  median  max
    1        2      12                       6       6    6
12 images; 12 of them in the 1 group of classes with at least 2, 12 in the first 1
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal", "NO_COLOR"])
def test_a_table_has_colors_on_a_terminal_and_is_plain_elsewhere(kind, images, monkeypatch, capsys):
    words = ["dataset", "groups", str(images / "train"), "--cells.min_images_per_class", "2", "--quiet"]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if kind == "pipe":
        main(words)
        assert capsys.readouterr().out == PLAN
        return
    if kind == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    reader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        main(words)
        monkeypatch.undo()
        shown = "".join(iter(lambda: available(reader), "")).replace("\r", "")
    os.close(reader)
    if kind == "NO_COLOR":
        assert shown == PLAN
    else:
        assert "\x1b[1mclasses\x1b[0m" in shown and shown.endswith(PLAN.splitlines()[-1] + "\n")


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_log_in_json_is_one_object_a_line(given, images, capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, "json" if given == "environment" else "")  # restored at the end
    option = ["--log_format", "json"] if given == "option" else []
    main(["dataset", "scan", str(images / "train"), *option])
    shown = capsys.readouterr()
    assert shown.out == f"{images / 'train.arrow'}\n"
    entries = [json.loads(line) for line in shown.err.splitlines()]
    assert any("12 images of" in entry["event"] for entry in entries)
    assert {entry["level"] for entry in entries} == {"info"}


@pytest.mark.parametrize(
    ("words", "status", "event"),
    [
        (["evalute"], 2, "progeo: error: there is no command 'evalute'. Did you mean 'evaluate'?"),
        (["demo", "--seed", "-1"], 2, "progeo demo: error: --seed must be a whole number ≥0, got -1."),
        (["dataset", "groups", "nowhere"], 1, "progeo dataset groups: error: There is no folder nowhere."),
    ],
)
def test_an_error_is_the_last_object_of_a_log_in_json(words, status, event, capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--log_format=json"])
    assert stop.value.code == status
    (entry,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (entry["level"], entry["event"]) == ("error", event)


def test_an_option_that_sets_the_environment_holds_for_its_command_only(images, capsys, monkeypatch):
    monkeypatch.setenv("PROGEO_MAX_PIXELS", "50")
    monkeypatch.delenv(VARIABLE, raising=False)
    scan = ["dataset", "scan", str(images / "train")]
    main([*scan, "--log_format", "json", "--max_pixels", "10"])
    assert os.environ["PROGEO_MAX_PIXELS"] == "50" and VARIABLE not in os.environ
    capsys.readouterr()
    main(scan)
    assert not capsys.readouterr().err.startswith("{")


def test_a_fault_is_an_object_with_its_traceback_in_json_and_raised_in_text(capsys, monkeypatch):
    def fail() -> None:
        """Fail as a command with a fault does."""
        raise RuntimeError("a fault")

    monkeypatch.setenv(VARIABLE, "json")
    monkeypatch.setattr("progeo.commands.demo.demo", fail)
    with pytest.raises(SystemExit):
        main(["demo"])
    entry = json.loads(capsys.readouterr().err)
    assert entry["event"].startswith("Traceback") and entry["event"].endswith("progeo demo: RuntimeError: a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        main(["demo", "--log_format", "text"])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_alone_prints_logs_and_says_that_it_was_interrupted(
    rank, images, capsys, monkeypatch
):
    def interrupt() -> None:
        """Stop as a command does in which Ctrl-C is pressed."""
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    main(["dataset", "scan", str(images / "train")])
    shown = capsys.readouterr()
    assert [bool(shown.out), "12 images of" in shown.err] == [rank == "0"] * 2
    monkeypatch.setattr("progeo.commands.demo.demo", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["demo"])
    assert stop.value.code == 130
    assert ("interrupted: the same command" in capsys.readouterr().err) is (rank == "0")
    monkeypatch.undo()
    start_log()  # of the first process again


def test_another_format_of_the_log_is_a_wrong_command_line(capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert usage_failure(capsys, "demo", "--log_format", "xml") == (
        "progeo demo: error: PROGEO_LOG_FORMAT (or --log_format) is text or json, got 'xml'."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    "command",
    [
        PROMPTS,
        ENCODER,
        ["evaluate", "--encoder", "e", "--folder", "f", "--out", "o"],
        ["compare", "e", "--folder", "f", "--out", "o"],
        ["pca", "e", "--folder", "f", "--out", "t", "--dim", "8"],
        ["index", "build", "--encoder", "e", "--folder", "f", "--out", "o"],
        ["index", "add", "i", "--folder", "f"],
        ["index", "calibrate", "i", "--folder", "f"],
    ],
    ids=lambda command: "_".join(command[:2]),
)
def test_no_command_computes_in_full_precision_when_fp16_is_asked_for(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = failure(*command, "--mixed_precision", "fp16")
    assert sentence.endswith("error: --mixed_precision fp16 needs a GPU, and there is none: give bf16 or no.")
    assert not list(tmp_path.iterdir())


def test_a_sentence_comes_without_a_traceback_and_with_a_status(tmp_path):
    command = [sys.executable, "-m", "progeo.cli", "dataset", "scan", "t"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("progeo dataset scan: error: There is no folder t")
    assert "Traceback" not in result.stderr


def test_stage_2_without_prompts_says_what_can_be_done(images):
    sentence = failure(*training(images, "--cells.min_images_per_class", 2, "--cells.num_groups", 1))
    assert "There are no prompts in" in sentence
    assert "--text.weight 0" in sentence


def test_too_many_groups_are_refused_with_how_many_there_are(images):
    sentence = failure(*learning(images, "--cells.min_images_per_class", 2))
    assert "--cells.num_groups is 8, but the images form 1 group with classes of at least 2" in sentence
    assert not (images / "run").exists()  # the folder is free for the corrected command


def test_a_name_outside_the_convention_is_refused_with_the_field(images):
    (images / "train" / "holiday.jpg").touch()
    sentence = failure(*learning(images))
    assert "'holiday.jpg' does not follow the naming convention" in sentence
    assert "field 1 (east)" in sentence


def test_what_a_terminal_would_obey_is_spelled_out(tmp_path):
    assert r"There is no folder nowhere\x1b[2J\x07." in failure("dataset", "groups", "nowhere\x1b[2J\x07")


def test_a_value_of_a_settings_file_is_spelled_out_and_cut(tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(f'seed: "\\e[2J\\u202e{"x" * 9000}"\n')
    sentence = usage_failure(capsys, "train", "prompts", "--config", tmp_path / "settings.yaml")
    assert r"got \x1b[2J\u202exxx" in sentence
    assert len(sentence) < 5000 and f"xxx in {tmp_path / 'settings.yaml'}" in sentence


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_name_is_spelled_out_in_a_terminal_and_nowhere_else(tmp_path, monkeypatch, capsys, is_terminal):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "set/@550000@4180000@10@S@.jpg")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    main(["dataset", "scan", str(tmp_path / "set"), "--out", str(tmp_path / "\x1b[2J")])
    assert (r"\x1b[2J" if is_terminal else "\x1b[2J") in capsys.readouterr().out


def test_a_name_is_spelled_out_where_the_encoding_of_stdout_lacks_its_letters(tmp_path, monkeypatch):
    (tmp_path / "東京").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "東京/@550000@4180000@10@S@.jpg")
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="cp1252"))  # that of a pipe on Windows
    main(["dataset", "scan", str(tmp_path / "東京")])
    assert written.getvalue().decode() == f"{tmp_path}/\\u6771\\u4eac.arrow\n"


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
    sentence = failure(*learning(images, *settings, "--prompts.feature_cache", images / "features"))
    assert f"{broken} cannot be decoded" in sentence


def test_a_second_run_in_the_same_folder_is_refused(images):
    cells = ["--cells.min_images_per_class", 2, "--cells.num_groups", 1]
    settings = learning(images, *cells, "--prompts.epochs", 1, "--prompts.feature_cache", images / "features")
    main([*map(str, settings)])
    assert "already holds a run: set --resume to resume it" in failure(*settings)
    changed = [*settings, "--resume", "true", "--prompts.temperature", "0.5"]
    assert "prompts.temperature was 1.0, now 0.5" in failure(*changed)


def test_prompts_of_other_cells_are_refused_with_what_differs(images):
    settings = ["--cells.min_images_per_class", 2, "--cells.num_groups", 1]
    cache = ["--prompts.feature_cache", images / "features", "--prompts.epochs", 1]
    main([*map(str, learning(images, *settings, *cache))])
    sentence = failure(*training(images, *settings, "--cells.cell_side_m", 20))
    assert "was made with --cells.cell_side_m = 10, now it is 20" in sentence


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
        start_log()
        with pytest.raises(BrokenPipeError):
            print("nobody", file=closed)
        LOGGER.info("nobody reads this")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())  # so that it can be closed
    start_log()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_and_leaves_nothing(tmp_path, capsys, number, status):
    listing, half = tmp_path / "train_images_paths.txt", tmp_path / "train/@0@0@.jpg"
    half.parent.mkdir()
    half.touch()
    listing.write_text("".join(f"@{row}@0@.jpg\n" for row in range(200_000)).replace("@0@0@.jpg", half.name))

    def interrupt_when_something_is_written(*_):
        with suppress(FileNotFoundError):  # or it just got its name
            if any(path.stat().st_size for path in tmp_path.glob(".train-*/*")):  # within the writing, not just before
                signal.setitimer(signal.ITIMER_REAL, 0)  # once, and not again in the middle of cleaning up
                signal.raise_signal(number)

    before = signal.signal(signal.SIGALRM, interrupt_when_something_is_written)
    on_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in the background
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["dataset", "scan", str(tmp_path / "train")])
        assert stop.value.code == status
        shown = "progeo dataset scan: interrupted: the same command continues with what is done.\n"
        assert capsys.readouterr().err.endswith(shown)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, on_interrupt)
    assert set(tmp_path.iterdir()) == {listing, half.parent}


def test_the_version_is_that_of_the_package_as_a_module_too(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"progeo {progeo.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "progeo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"progeo {progeo.__version__}\n"


def test_the_most_pixels_of_an_image_are_an_option_of_every_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PROGEO_MAX_PIXELS", "")  # restored at the end
    for number in range(3):
        Image.new("RGB", (10, 10 + number)).save(tmp_path / f"@{550000 + number}.0@4180000.0@10@S@@@@@0@@@@@@@.png")
    words = ["dataset", "check", str(tmp_path), "--out", str(tmp_path / "check")]
    main([*words, "--max_pixels", "110"])
    assert "it has more than 110 pixels" in (tmp_path / "check" / "check.html").read_text()
    assert "(or --max_pixels) is a positive number of pixels, got 'all'" in failure(*words, "--max_pixels=all")
