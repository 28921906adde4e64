"""The command `progeo`: one sub-command a stage, the same functions as the scripts."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A sub-command: where its function lies, and what its settings are."""

    function: str
    settings: str
    summary: str
    positional: bool = False
    """Settings without a default are given as plain words."""


COMMANDS = {
    "stage1": Command("prompts:train_prompts", "Settings", "learn a text prompt for every place"),
    "stage2": Command("image:train_image_encoder", "Settings", "train the image encoder on places and their prompts"),
    "evaluate": Command("evaluate:evaluate", "EvaluateSettings", "recall of an encoder, with a report"),
    "prompts show": Command(
        "show_prompts:show_prompts", "ShowPromptsSettings", "words nearest to the learned prompts", True
    ),
    "dataset index": Command(
        "dataset:index_dataset", "DatasetIndexSettings", "find and parse all names once, for sets of millions", True
    ),
    "dataset check": Command(
        "check:check_dataset", "DatasetCheckSettings", "read all images once and say what is wrong with them", True
    ),
    "dataset from-table": Command(
        "dataset:read_image_table", "DatasetTableSettings", "places from CSV, Parquet or GeoJSON", True
    ),
    "dataset from-photos": Command(
        "dataset:read_own_photos", "DatasetPhotosSettings", "places from photos with GPS positions", True
    ),
    "dataset from-dbstruct": Command(
        "dataset:read_struct", "DatasetStructSettings", "Pittsburgh and Tokyo, from their .mat files", True
    ),
    "dataset from-arrays": Command(
        "dataset:read_truth", "DatasetArraysSettings", "ground truth without coordinates, from .npy files", True
    ),
    "dataset groups": Command(
        "dataset:plan_groups", "DatasetGroupsSettings", "count classes and images of every group", True
    ),
    "export": Command("export:export", "ExportSettings", "write the best encoder of a run to its own folder", True),
    "toy-city": Command("toy_city:make_toy_city", "ToyCitySettings", "render a small city to try everything on", True),
    "demo": Command("demo:run_demo", "DemoSettings", "the whole job on a toy city"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command; what a user can cause ends with one sentence and status 1, without a traceback.

    PROGEO_DEBUG=1 in the environment shows the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        asked = words[-1] in ("-h", "--help")
        print(_usage(), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else f"progeo: there is no command {words[0]!r}.")
    try:
        run_command(name, words[len(name.split()) :])
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("PROGEO_DEBUG") == "1":
            raise
        sys.exit(f"progeo {name}: error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"progeo {name}: {str(interrupt) or 'interrupted.'}")


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Parse the settings of a sub-command and run it; its imports wait until here, so that others start fast."""
    command = COMMANDS[name]
    config = importlib.import_module("progeo.config")
    settings = config.parse_settings(
        getattr(config, command.settings), arguments, program=f"progeo {name}", positional=command.positional
    )
    module, function = command.function.split(":")
    getattr(importlib.import_module(f"progeo.stages.{module}"), function)(settings)


def _usage() -> str:
    rows = [f"  {name:21} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: progeo COMMAND [--help | OPTIONS]", "", *rows])


if __name__ == "__main__":
    main()
