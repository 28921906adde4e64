"""The command `progeo`: one table of commands, which the scripts share."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A sub-command: the names of its function and of its settings class."""

    function: str
    settings: str
    summary: str
    positional: bool = False
    """Whether settings without a default are positional arguments."""
    words: str | None = None
    """Name of the setting that collects all positional arguments."""


COMMANDS = {
    "stage1": Command("train_prompts:train_prompts", "training:Settings", "learn a text prompt for every place"),
    "stage2": Command(
        "train_encoder:train_image_encoder", "training:Settings", "train the image encoder on places and their prompts"
    ),
    "evaluate": Command("evaluate:evaluate", "evaluation:EvaluateSettings", "recall of an encoder, with a report"),
    "compare": Command(
        "compare:compare", "evaluation:CompareSettings", "the same for several encoders, in one table", words="encoders"
    ),
    "reduce": Command(
        "pca:fit_encoder_pca", "evaluation:ReduceSettings", "fewer dimensions for an encoder's descriptors"
    ),
    "index build": Command(
        "index:build_place_index",
        "evaluation:IndexBuildSettings",
        "images of known places and an encoder, to localize photos with",
    ),
    "index add": Command("index:add_to_place_index", "evaluation:IndexAddSettings", "more images for an index"),
    "index calibrate": Command(
        "index:calibrate_place_index", "evaluation:IndexCalibrateSettings", "learn how sure its answers may be"
    ),
    "localize": Command("localize:localize", "evaluation:LocalizeSettings", "where photos were taken", words="photos"),
    "prompts show": Command(
        "show_prompts:show_prompts", "encoders:ShowPromptsSettings", "words nearest to the learned prompts", True
    ),
    "dataset index": Command(
        "dataset:index_dataset",
        "datasets:DatasetIndexSettings",
        "find and parse all names once, for sets of millions",
        True,
    ),
    "dataset check": Command(
        "check:check_dataset",
        "datasets:DatasetCheckSettings",
        "read all images once and say what is wrong with them",
        True,
    ),
    "dataset from-table": Command(
        "dataset:read_image_table", "datasets:DatasetTableSettings", "places from CSV, Parquet or GeoJSON", True
    ),
    "dataset from-photos": Command(
        "dataset:read_own_photos", "datasets:DatasetPhotosSettings", "places from photos with GPS positions", True
    ),
    "dataset from-dbstruct": Command(
        "dataset:read_struct", "datasets:DatasetStructSettings", "Pittsburgh and Tokyo, from their .mat files", True
    ),
    "dataset from-arrays": Command(
        "dataset:read_truth",
        "datasets:DatasetArraysSettings",
        "ground truth of OpenVPRLab, GSV-Cities, Patch-NetVLAD, VPR-Bench",
        True,
    ),
    "dataset from-msls": Command(
        "dataset:read_street_sequences",
        "datasets:DatasetMslsSettings",
        "Mapillary Street-Level Sequences, from its own tables",
        True,
    ),
    "dataset views": Command(
        "views:cut_panoramas", "datasets:DatasetViewsSettings", "perspective views of 360 degree panoramas", True
    ),
    "dataset groups": Command(
        "dataset:plan_groups", "datasets:DatasetGroupsSettings", "count classes and images of every group", True
    ),
    "export": Command("export:export", "encoders:ExportSettings", "write the encoder of a run to its own folder", True),
    "import": Command(
        "import_weights:import_weights",
        "encoders:ImportSettings",
        "make an encoder of the weights of another program",
        True,
    ),
    "toy-city": Command(
        "toy_city:make_toy_city", "datasets:ToyCitySettings", "render a small city to try everything on", True
    ),
    "demo": Command("demo:run_demo", "encoders:DemoSettings", "the whole job on a toy city"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command; an error that a user can cause ends with one sentence and status 1, without a traceback.

    PROGEO_DEBUG=1 in the environment shows the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    program = f"progeo {name}" if name else "progeo"
    try:
        for word in words:
            word.encode()  # a path that is not UTF-8 cannot be written to text files and pages
        if words == ["--version"]:
            print(f"progeo {import_module('progeo').__version__}", flush=True)
            return
        if name is None:
            asked = words[-1] in ("-h", "--help")
            print(_usage(), file=sys.stdout if asked else sys.stderr, flush=True)
            sys.exit(0 if asked else f"progeo: {_unknown(words)}")
        run_command(name, words[len(name.split()) :])
        print(end="", flush=True)
    except BrokenPipeError as error:
        if _flush_stdout("\n"):  # stdout still works, so another pipe is broken
            sys.exit(f"{program}: error: {error}")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("PROGEO_DEBUG") == "1":
            raise
        sys.exit(f"{program}: error: {_sentence(error)}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"{program}: {str(interrupt) or 'interrupted.'}")
    finally:
        _flush_stdout()


def _flush_stdout(last: str = "") -> bool:
    """Flush stdout and return whether it worked; if not (after `| head -1`, or a full disk), discard further output."""
    try:
        print(end=last, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        before, after = error.object[: error.start], error.object[error.start :]
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        spelled_out = import_module("progeo.files").spelled_out
        return f"{spelled_out(line)} is not UTF-8: rename that file or folder."
    return str(error)


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Parse the settings of a sub-command and run it. Modules are imported here, so that other commands start fast."""
    command = COMMANDS[name]
    settings = import_module("progeo.config.parsing").parse_settings(
        _named("config", command.settings),
        arguments,
        program=f"progeo {name}",
        positional=command.positional,
        words=command.words,
    )
    _named("commands", command.function)(settings)


def _named(room: str, name: str) -> Any:
    """Import `module:name` from a package of progeo."""
    module, _, name = name.partition(":")
    return getattr(import_module(f"progeo.{room}.{module}"), name)


def _unknown(words: Sequence[str]) -> str:
    """Write the error message for an unknown command, with the most similar command as a suggestion."""
    given = " ".join(words[: 1 + any(name.startswith(f"{words[0]} ") for name in COMMANDS)])
    nearest = get_close_matches(given, COMMANDS, 1)
    return f"there is no command {given!r}." + "".join(f" Did you mean {name!r}?" for name in nearest)


def _usage() -> str:
    rows = [f"  {name:21} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: progeo COMMAND [--help | OPTIONS]", "", *rows])


if __name__ == "__main__":
    main()
