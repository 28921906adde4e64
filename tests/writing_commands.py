"""Every command that writes, on small data: how it is run, what it changes, and what its files are compared by."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from file_events import Plan
from running import Started, start

_PROGRAM = "progeo/__main__.py"
_NOT_COMPARED = re.compile(
    r"seconds|_s$|_ms$|per_s(econd)?$|memory_bytes$|duration|time|date|^resume$|^wait$|^generation$"
)
"""Names of measured times, of settings that a command has only if it is run again, and of the count of updates."""
_RANDOM_NAME = re.compile(r"(trained|removed)_[0-9a-f]{12}|(index)_(?:[0-9a-f]{8}(?=\.faiss|\.sha256)|\d+(?=\.json))")
_SAFETENSORS = re.compile(r"\.tmp\w{6}")
"""A temporary file of safetensors, which a process that is killed within it leaves, and nobody removes."""
_MEASURED = re.compile(r"[\d.]+ (?=ms per query)|(?<=exact search )[\d.]+(?= ms)")
"""A measured time, in a text."""
_MEASURED_COLUMNS = re.compile(r"([,|] ?\d+ ?[,|])( ?[\d.]+ ?[,|]){3}")
"""The images per second and the milliseconds of a search and in total, after the dimensions in a comparison."""
_NEVER_EQUAL = ("log.txt", "environment.json", "reproduce.sh", "compare.html")


@dataclass(frozen=True)
class World:
    """Folders that the commands read and write."""

    city: Path
    config: Path
    run: Path
    """A finished run of both stages."""
    given: Path
    """What was made once, copied from here before each run of a command."""
    work: Path
    """Where commands write."""


@dataclass(frozen=True)
class Writing:
    """A command that writes."""

    words: Callable[[World], list[object]]
    given: tuple[str, ...] = ()
    """Names in `World.given` that are copied to `World.work` before it runs."""
    again: tuple[str, ...] = ()
    """Words that are added when it is run again after it was interrupted."""
    is_quick: bool = True
    """Whether it ends within a second."""


def _cached(world: World) -> list[object]:
    return ["--descriptor_cache", world.work / "cache", "--num_workers", 0]


def _training(world: World, stage: str, *others: object) -> list[object]:
    cache = ["--prompts.feature_cache", world.work / "features"] if stage == "prompts" else []
    return ["train", stage, "--config", world.config, "--out", world.work / "run", *cache, *others]


def _encoder(world: World, *others: object) -> list[object]:
    return _training(world, "encoder", "--training.checkpoint_every", 1, "--training.epochs", 2, *others)


_RESUMED = ("--resume", "true")
COMMANDS = {
    "train prompts": Writing(
        lambda w: _training(w, "prompts", "--prompts.checkpoint_minutes", 0), again=_RESUMED, is_quick=False
    ),
    "train encoder": Writing(_encoder, ("run/stage1",), again=_RESUMED, is_quick=False),
    "train encoder, last": Writing(
        lambda w: _encoder(w, "--training.keep", "last", "--text.weight", 0), again=_RESUMED, is_quick=False
    ),
    "train, both stages": Writing(
        lambda w: [
            *("train", "--config", w.config, "--out", w.work / "run", "--prompts.feature_cache", w.work / "features"),
            *("--training.epochs", 1, "--prompts.epochs", 1),
        ],
        again=_RESUMED,
        is_quick=False,
    ),
    "evaluate": Writing(
        lambda w: ["evaluate", w.run, "--folder", w.city / "test", "--out", w.work / "results", *_cached(w)]
    ),
    "evaluate, compressed": Writing(
        lambda w: [
            *("evaluate", w.run, "--folder", w.city / "test", "--out", w.work / "results", "--faiss", "IVF2,Flat"),
            *_cached(w),
        ]
    ),
    "compare": Writing(
        lambda w: [
            *("compare", w.run, "thumbnail", "--folder", w.city / "test", "--out", w.work / "compared"),
            *_cached(w),
        ]
    ),
    "extract": Writing(lambda w: ["extract", w.run, "--folder", w.city / "test/database", *_cached(w)]),
    "pca": Writing(
        lambda w: ["pca", w.run, "--folder", w.city / "train", "--dim", 8, "--out", w.work / "pca", *_cached(w)]
    ),
    "classes": Writing(
        lambda w: ["classes", w.run, "--folder", w.city / "train", "--out", w.work / "means", *_cached(w)]
    ),
    "index build": Writing(
        lambda w: ["index", "build", w.run, "--folder", w.given / "split/train", "--out", w.work / "index", *_cached(w)]
    ),
    "index add": Writing(
        lambda w: ["index", "add", w.work / "index", "--folder", w.city / "test/database", *_cached(w)], ("index",)
    ),
    "index remove": Writing(
        lambda w: ["index", "remove", w.work / "added", "--folder", w.city / "test/database"], ("added",)
    ),
    "index compact": Writing(lambda w: ["index", "compact", w.work / "removed"], ("removed",)),
    "index calibrate": Writing(
        lambda w: ["index", "calibrate", w.work / "index", "--folder", w.given / "split/queries", *_cached(w)],
        ("index",),
    ),
    "localize": Writing(
        lambda w: [
            *("localize", w.city / "val/queries", "--index", w.work / "index", "--out", w.work / "found.geojson"),
            *("--num_workers", 0),
        ],
        ("index",),
    ),
    "export": Writing(lambda w: ["export", w.run, "--out", w.work / "out"]),
    "export beside a file": Writing(lambda w: ["export", w.run, "--out", w.work / "notes"], ("notes",)),
    "export to the run": Writing(lambda w: ["export", w.work / "run"], ("run",)),
    "export backbone": Writing(lambda w: ["export", w.run, "--format", "backbone", "--out", w.work / "out"]),
    "export torch": Writing(lambda w: ["export", w.run, "--format", "torch", "--out", w.work / "out"], is_quick=False),
    "export onnx": Writing(lambda w: ["export", w.run, "--format", "onnx", "--out", w.work / "out"], is_quick=False),
    "import": Writing(lambda w: ["import", w.given / "published/model.pth", "--out", w.work / "imported"]),
    "import to an empty folder": Writing(
        lambda w: ["import", w.given / "published/model.pth", "--out", w.work / "empty"], ("empty",)
    ),
    "dataset import": Writing(
        lambda w: [
            *("dataset", "import", "table", w.given / "table/places.csv", "--out", w.work / "imported"),
            *("--images", w.city / "train", "--link", "true"),
        ]
    ),
    "dataset scan": Writing(lambda w: ["dataset", "scan", w.city / "train", "--out", w.work / "scanned"]),
    "dataset split": Writing(
        lambda w: ["dataset", "split", w.city / "train", "--every", 4, "--out", w.work / "split", "--link", "true"]
    ),
    "dataset merge": Writing(
        lambda w: [
            *("dataset", "merge", w.city / "train", w.city / "val/database", "--out", w.work / "merged"),
            *("--cells.min_images_per_class", 2, "--cells.num_groups", 1),
        ]
    ),
    "dataset views": Writing(
        lambda w: ["dataset", "views", w.given / "panoramas", "--out", w.work / "views", "--headings", 3, "--size", 32]
    ),
    "dataset check": Writing(lambda w: ["dataset", "check", w.city / "val", "--out", w.work / "check"]),
    "demo": Writing(
        lambda w: ["demo", "--only_city", "--out", w.work / "demo", "--num_images", 20, "--image_size", 32]
    ),
    "runs show": Writing(lambda w: ["runs", "show", w.run, "--out", w.work / "runs.svg"]),
    "prompts show": Writing(lambda w: ["prompts", "show", w.run, "--out", w.work / "words.csv"]),
}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int | None
    said: str

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def sentence(self) -> str:
        """Its last line."""
        return (self.said.strip().splitlines() or [""])[-1]


def prepare(world: World, name: str) -> Path:
    """Empty the folder that commands write to and copy to it what a command is given; return the folder."""
    world.work.mkdir(exist_ok=True)
    for path in world.work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for each in COMMANDS[name].given:
        shutil.copytree(world.given / each, world.work / each, symlinks=True)
    return world.work


def begin(world: World, name: str, plan: Plan | None = None, *others: object) -> Started:
    """Start a command in a child."""
    (started,) = start_program(*COMMANDS[name].words(world), *others, plan=plan)
    return started


def start_program(*words: object, plan: Plan | None = None) -> list[Started]:
    """Start `progeo` in a child."""
    return start(_PROGRAM, *words, plan=plan)


def finish(started: Started) -> Ended:
    """Wait until a command ends or is stopped."""
    return _ended(started, started.wait())


def proceed(started: Started) -> Ended:
    """Let a command go on that was stopped, and wait until it ends."""
    return _ended(started, started.proceed())


def run(world: World, name: str, plan: Plan | None = None, *others: object) -> Ended:
    """Run a command in a child."""
    return finish(begin(world, name, plan, *others))


def _ended(started: Started, code: int | None) -> Ended:
    said = started.said
    if code is not None:
        started.log.unlink()
    return Ended(code, said)


def tree(folder: Path) -> dict[str, Any]:
    """The content of all files of a folder by their names, without random names and times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if _SAFETENSORS.fullmatch(path.name):
            continue
        name = _RANDOM_NAME.sub(r"\1\2_x", path.relative_to(folder).as_posix())
        while name in found:
            name += " again"
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.name in _NEVER_EQUAL:
            found[name] = "file"
        else:
            try:
                found[name] = _content(path)
            except ValueError:  # what a killed command left of a temporary file
                found[name] = path.read_bytes()
    return found


def _content(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        return [_compared(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        text = _MEASURED.sub("T ", _RANDOM_NAME.sub(r"\1\2_x", path.read_text()))
        return _compared(json.loads(text))
    if path.name == "config.yaml":
        return _compared(yaml.safe_load(path.read_text()))
    if path.suffix in (".html", ".md", ".csv"):
        text = _MEASURED.sub("T ", path.read_text())
        return _MEASURED_COLUMNS.sub(r"\1", text) if path.name.startswith("compare.") else text
    return path.read_bytes()


def _compared(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _compared(each) for name, each in value.items() if not _NOT_COMPARED.search(name)}
    return [_compared(each) for each in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that differ."""
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def is_hidden(name: str) -> bool:
    """Whether a name, relative to the folder that commands write to, is that of a temporary file or lock, or in one."""
    return any(part.startswith(".") for part in Path(name).parts)


@dataclass
class Count:
    """What came of interrupting a command and running it again."""

    events: int
    trials: int = 0
    wrong: list[str] = field(default_factory=list)
    """What was different, refused or a traceback, in words."""

    def add(self, where: str, reason: str) -> None:
        self.trials += 1
        if reason:
            self.wrong.append(f"{where}: {reason}")

    def __str__(self) -> str:
        kinds = ("different", "refused", "traceback", "ended")
        counts = {kind: sum(f": {kind}" in reason for reason in self.wrong) for kind in kinds}
        return f"{self.events} events, {self.trials} kills, " + ", ".join(f"{n} {kind}" for kind, n in counts.items())
