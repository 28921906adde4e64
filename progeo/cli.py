"""The command `progeo`: one table of commands, which the scripts share."""

import dataclasses
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from progeo import __version__
from progeo.config.help import help_page
from progeo.config.parsing import UsageError, parse_arguments, take_option, with_home
from progeo.config.settings import settings_of
from progeo.engine.environment import giving
from progeo.engine.log import LOGGER, start_log, stop_log
from progeo.engine.out_of_memory import explaining_out_of_memory
from progeo.engine.stopping import Terminated, raising_terminated
from progeo.image_files import MAX_PIXELS_VARIABLE, max_pixels
from progeo.log_format import VARIABLE, check_log_format, json_line, logs_json, print_entry
from progeo.plugins import import_installed_plugins, import_plugin
from progeo.printable import escaped
from progeo.terminal import has_colors
from progeo.unwritten import ErrorWithResult


@dataclass(frozen=True)
class Command:
    """A command: its function in `progeo.commands`, and how it is shown and called."""

    function: str
    """Module and name of the function."""
    summary: str
    example: str
    words: tuple[str, ...] = ()
    """Names of the settings that plain words give, see `config.parsing.parse_arguments`."""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"progeo.commands.{module}"), name)


COMMANDS = {
    "train": Command(
        "train:train",
        "train as a configuration says: stage 1 if it uses texts, then stage 2",
        "progeo train --config progeo_rn50 --out runs/city --data.train_folder city/train --validation.folder city/val",
    ),
    "train prompts": Command(
        "train_prompts:train_prompts",
        "stage 1: learn a text prompt for every place",
        "progeo train prompts --config progeo_rn50 --out runs/city --data.train_folder city/train",
    ),
    "train encoder": Command(
        "train_encoder:train_encoder",
        "stage 2: train the image encoder on places and their prompts",
        "progeo train encoder --config progeo_rn50 --out runs/city --data.train_folder city/train "
        "--validation.folder city/val",
    ),
    "evaluate": Command(
        "evaluate:evaluate",
        "measure the recall of an encoder and write a report",
        "progeo evaluate runs/city --folder pitts30k/test --out results/pitts30k",
        ("encoder",),
    ),
    "compare": Command(
        "compare:compare",
        "evaluate several encoders on one or several data sets and compare them",
        "progeo compare runs/city open_clip:RN50:openai --folder pitts30k/test --out results/compared",
        ("encoders...",),
    ),
    "extract": Command(
        "extract:extract",
        "extract descriptors into the cache, on one machine or on many",
        "progeo extract runs/city --folder city/database --descriptor_cache shared/descriptors",
        ("encoder",),
    ),
    "pca": Command(
        "pca:pca",
        "reduce the dimension of an encoder's descriptors with PCA",
        "progeo pca runs/city --folder city/train --dim 512 --out encoders/city_512",
        ("encoder",),
    ),
    "classes": Command(
        "classes:classes",
        "give an encoder the mean descriptors of map cells as classes",
        "progeo classes runs/city --folder city/train --out encoders/city_means",
        ("encoder",),
    ),
    "index build": Command(
        "index:build_index",
        "build a place index from images with known positions, or classes, and an encoder",
        "progeo index build runs/city --folder city/database --out city.index",
        ("encoder",),
    ),
    "index add": Command(
        "index:add_to_index",
        "add images to a place index",
        "progeo index add city.index --folder new",
        ("index",),
    ),
    "index remove": Command(
        "index:remove_from_index",
        "remove images from a place index",
        "progeo index remove city.index --folder old",
        ("index",),
    ),
    "index compact": Command(
        "index:compact_index",
        "write a place index anew in few parts, without removed images",
        "progeo index compact city.index",
        ("index",),
    ),
    "index check": Command(
        "index:check_index",
        "read all files of a place index and check them",
        "progeo index check city.index",
        ("index",),
    ),
    "index calibrate": Command(
        "index:calibrate_index",
        "calibrate the confidence of a place index on photos with known positions",
        "progeo index calibrate city.index --folder city/queries",
        ("index",),
    ),
    "localize": Command(
        "localize:localize",
        "find where photos were taken",
        "progeo localize photo.jpg holiday/ --index city.index --out found.geojson",
        ("photos...",),
    ),
    "serve": Command(
        "serve:serve",
        "localize photos over HTTP, and on a page",
        "progeo serve --index city.index",
    ),
    "export": Command(
        "export:export",
        "write the encoder of a run as files of its own",
        "progeo export runs/city --format onnx --out city_onnx",
        ("encoder",),
    ),
    "import": Command(
        "import_weights:import_weights",
        "make an encoder of the weights of another program",
        "progeo import resnet50_512.pth --out encoders/cosplace",
        ("file",),
    ),
    "runs show": Command(
        "runs:show_runs",
        "compare the losses, recalls and speed of runs, also while they are trained",
        "progeo runs show runs/city runs/other --out runs.html",
        ("runs...",),
    ),
    "prompts show": Command(
        "show_prompts:show_prompts",
        "show the words nearest to the learned prompts",
        "progeo prompts show runs/city --at 549130,4180920,90",
        ("run",),
    ),
    "dataset import": Command(
        "dataset_import:import_dataset",
        "write the catalogue of a data set in another format",
        "progeo dataset import table places.csv --out city --columns path=photo",
        ("kind", "source"),
    ),
    "dataset scan": Command(
        "dataset:scan_dataset",
        "find and parse all file names of folders or URLs once, for millions of images",
        "progeo dataset scan sf_xl/train",
        ("folders...",),
    ),
    "dataset check": Command(
        "dataset_check:check_dataset",
        "read all images once and report what is wrong with them",
        "progeo dataset check city/train --out results/check",
        ("folder",),
    ),
    "dataset groups": Command(
        "dataset:plan_groups",
        "count the classes and images of every group",
        "progeo dataset groups city/train --config progeo_rn50",
        ("data.train_folder",),
    ),
    "dataset split": Command(
        "dataset_split:split_dataset",
        "hold photos of known places out of a training set, to evaluate with",
        "progeo dataset split city/train --every 4 --out city_split",
        ("folder",),
    ),
    "dataset merge": Command(
        "dataset_merge:merge_datasets",
        "make one training set of several, with places by name or by cells",
        "progeo dataset merge gsv sf_xl/train --cells.num_groups 1 --out unified",
        ("folders...",),
    ),
    "dataset views": Command(
        "dataset_views:cut_panoramas",
        "cut 360 degree panoramas into perspective views",
        "progeo dataset views panoramas --out views",
        ("panoramas",),
    ),
    "doctor": Command(
        "doctor:doctor",
        "show what this machine has, what is missing, and which trainings fit into its memory",
        "progeo doctor",
    ),
    "demo": Command("demo:demo", "run everything on a small rendered city", "progeo demo --out demo"),
}
_LONGEST, _BEGINNING, _END = 5000, 4000, 500
"""Characters of a sentence that are shown; of a longer one, which quotes a file, its beginning and its end."""
_FORMER = {
    "stage1": "train prompts",
    "stage2": "train encoder",
    "reduce": "pca",
    "toy-city": "demo",
    "dataset index": "dataset scan",
    **{f"dataset from-{kind}": f"dataset import {kind}" for kind in ("table", "photos", "dbstruct", "arrays", "msls")},
}
"""Commands that were renamed: former name -> how it is called now."""
_MEMORY_SETTINGS = ("batch_size", "eval_batch_size", "image_size", "num_workers", "sample")


@contextmanager
def _restoring(*variables: str) -> Iterator[None]:
    """Restore variables of the environment, so that an option holds for one of several commands of a process."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@_restoring(VARIABLE, MAX_PIXELS_VARIABLE)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: results go to stdout, the log to stderr.

    An error that a user can cause ends with one sentence, without a traceback: status 2 if the command line is wrong,
    otherwise 1. Ctrl-C ends with 130 and SIGTERM with 143, and nothing half written is left. `--verbose`, or
    PROGEO_DEBUG=1 in the environment, shows the traceback. With `--log_format json`, or PROGEO_LOG_FORMAT=json, stderr
    gets one JSON object a line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    starts = [" ".join(words[:count]) for count in (2, 1)]
    name = next((start for start in starts if start in COMMANDS), "")
    program = f"progeo {name}".strip()
    groups = {each.partition(" ")[0] for each in COMMANDS if " " in each}
    _escape_unprintable()
    try:
        words = _with_log_format(words)
        for word in words:
            word.encode()  # a path that is not UTF-8 cannot be written to text files and pages
        if name in groups and words[1:] and not words[1].startswith("-"):
            raise UsageError(_unknown(words))  # a command of this group that does not exist
        if name:
            with raising_terminated():
                _run(name, words[len(name.split()) :])
        else:
            print(_without_command(words))
        print(end="", flush=True)
    except BrokenPipeError as error:
        if _flush_stdout("\n"):  # stdout still works, so another pipe is broken
            _end(1, f"{program}: error: {error}")
    except UsageError as error:
        _end(2, f"{program}: error: {_displayable(str(error))}")
    except (ValueError, OSError, MemoryError) as error:
        details = traceback.format_exc() if os.environ.get("PROGEO_DEBUG") == "1" or "--verbose" in words else ""
        _end(1, f"{program}: error: {_with_flags(_sentence(error), name)}", details=details)
    except KeyboardInterrupt as interrupt:
        again = "the same command with --resume" if name.startswith("train") else "the same command"
        advice = f"interrupted: {again} continues with what is done."
        status = 143 if isinstance(interrupt, Terminated) else 130
        if os.environ.get("RANK", "0") != "0":  # of several processes, one says it
            sys.exit(status)
        _end(status, f"{program}: {_with_flags(str(interrupt), name) or advice}", level="warning")
    except Exception as error:
        if not logs_json():
            raise
        _end(1, f"{program}: {type(error).__name__}: {error}", details=traceback.format_exc())
    finally:
        stop_log()
        _flush_stdout()


def _with_log_format(words: Sequence[str]) -> list[str]:
    """Set the format of the log, and return the other words."""
    rest, formats = take_option(words, "--log_format", "text or json")
    if formats:
        os.environ[VARIABLE] = formats[-1]
    try:
        check_log_format()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return rest


def _end(status: int, sentence: str, *, level: str = "error", details: str = "") -> NoReturn:
    """Exit with a last sentence on stderr, after its details, in the format of the log."""
    if logs_json():
        print_entry(json_line(level, f"{details}{sentence}"))
        sys.exit(status)
    print(end=details, file=sys.stderr)
    if status == 1:
        sys.exit(sentence)  # which Python prints
    print(sentence, file=sys.stderr)
    sys.exit(status)


def _run(name: str, words: Sequence[str]) -> None:
    command, given = COMMANDS[name], words
    start_log(quiet="--quiet" in words, translated=partial(_with_flags, command=name))
    words, plugins = take_option(words, "--plugin", "a Python file")
    words, limits = take_option(words, "--max_pixels", "a number of pixels")
    if limits:
        os.environ[MAX_PIXELS_VARIABLE] = limits[-1]  # which the processes that decode images inherit
    max_pixels()  # refuse a wrong number now
    for failure in import_installed_plugins():
        LOGGER.warning(failure)
    for file in plugins:
        import_plugin(Path(with_home(file)))
    if {"-h", "--help"} & set(words):
        page = partial(help_page, name, command.summary, command.example, command.words)
        print(page(settings_of(command.load()), brief="--help" not in words))
        return
    function = command.load()
    rest = [word for word in words if word not in ("--json", "--quiet", "--verbose")]
    arguments = parse_arguments(function, rest, words=command.words, others=training_settings)
    try:
        with giving([*name.split(), *given]), explaining_out_of_memory(_less_memory(function)):
            result = function(**arguments)
    except ErrorWithResult as error:
        _print_result(error.result, words)
        raise
    _print_result(result, words)


def _print_result(result: Any, words: Sequence[str]) -> None:
    if result is None or os.environ.get("RANK", "0") != "0":
        return
    if "--json" not in words and hasattr(result, "__rich__") and has_colors(sys.stdout):
        import_module("rich.console").Console(highlight=False).print(result, soft_wrap=True)
        return
    text = _as_json(result) if "--json" in words else _shown(result)
    print(escaped(text) if sys.stdout.isatty() else text)


def _less_memory(function: Callable[..., Any]) -> str:
    """Advise on the settings of a command that memory depends on."""
    names = [name for name in settings_of(function) if name.rpartition(".")[2] in _MEMORY_SETTINGS]
    return f"Lower --{', --'.join(names)}." if names else "Close other programs, or take a machine with more."


def _as_json(result: Any) -> str:
    """Format a result as JSON; of a list, each item on its own line, for programs that read lines."""
    items = result if isinstance(result, list) else [result]
    return "\n".join(json.dumps(item, default=_plain) for item in items)


def _plain(value: Any) -> Any:
    """Convert a result to types of JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _shown(result: Any) -> str:
    return "\n".join(map(str, result)) if isinstance(result, (list, tuple)) else str(result)


def training_settings() -> set[str]:
    """Return the settings of training, which a file may hold for other commands to skip."""
    return set(settings_of(COMMANDS["train"].load()))


def _without_command(words: Sequence[str]) -> str:
    """Answer a command line without a command: the version, a script of completions, or a list of commands."""
    if words == ["--version"]:
        return f"progeo {__version__}"
    if words[:1] == ["--print_completion"]:
        return import_module("progeo.config.completion").completion(words[1:], COMMANDS)
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    group = next((word for word in words[:1] if word in groups), "")
    if set(words) - {group, "-h", "--help"}:
        raise UsageError(_unknown(words))
    rows = [f"  {name:17} {each.summary}" for name, each in COMMANDS.items() if name.startswith(group)]
    usage = f"usage: progeo {group or 'COMMAND'} {'COMMAND ' if group else ''}[-h | --help | OPTIONS]"
    return "\n".join([usage, "", *rows, "", "-h lists the options of a command in a line each, --help explains them."])


def _unknown(words: Sequence[str]) -> str:
    """Say that there is no such command, with what it is called now or the most similar command."""
    starts = [" ".join(words[:count]) for count in (2, 1)]
    if former := next((start for start in starts if start in _FORMER), ""):
        return f"{former} is now called {_FORMER[former]!r}."
    if words[0].startswith("-"):
        return f"the first word is a command, got {words[0]}: give options after it, as in 'progeo demo --quiet'."
    given = starts[0] if any(name.startswith(f"{words[0]} ") for name in COMMANDS) else words[0]
    nearest = get_close_matches(given, COMMANDS, 1)
    return f"there is no command {given!r}. {f'Did you mean {nearest[0]!r}?' if nearest else 'See progeo --help.'}"


def _with_flags(sentence: str, command: str) -> str:
    """Turn the arguments that a sentence names in backquotes into the flags of a command, and escape its controls."""
    names = [*settings_of(COMMANDS[command].load()), "config", "plugin"] if command else []

    def flag(match: re.Match[str]) -> str:
        same = [name for name in names if match[1] in (name, name.rpartition(".")[2])]
        exact = match[1] in names
        return f"--{match[1] if exact else same[0]}" if exact or len(same) == 1 else match[1]

    return re.sub(r"`(\w+(?:\.\w+)*)`", flag, _displayable(sentence))


def _escape_unprintable() -> None:
    """Have stdout escape what its encoding lacks, as stderr does: on Windows that of a pipe has few letters."""
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _displayable(sentence: str) -> str:
    if len(sentence) > _LONGEST:
        sentence = f"{sentence[:_BEGINNING]} [...] {sentence[-_END:]}"
    return escaped(sentence)


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        before, after = error.object[: error.start], error.object[error.start :]
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        return f"{line} is not UTF-8: rename that file or folder."
    return str(error)


def _flush_stdout(last: str = "") -> bool:
    """Flush stdout and return whether it worked; if not (after `| head -1`, or a full disk), discard further output."""
    try:
        print(end=last, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


if __name__ == "__main__":
    main()
