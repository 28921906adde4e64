"""What the documentation shows exists: paths, commands, flags, configurations and settings."""

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest

from progeo.cli import COMMANDS
from progeo.config.parsing import parse_arguments, take_option
from progeo.config.settings import settings_of
from progeo.evaluation.protocols import load_protocol, protocol_names
from progeo.plugins import import_plugin

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
CONFIGS = sorted((ROOT / "progeo/configs").rglob("*.yaml"))
HEADS = {
    path.relative_to(ROOT).as_posix(): "".join(
        f"{line.removeprefix('#').removeprefix(' ')}\n" for line in path.read_text().splitlines() if line[:1] == "#"
    )
    for path in (*CONFIGS, *sorted((ROOT / "benchmarks/configs").glob("*.yaml")))
}
SCRIPTS = {"stage1_prompts.py": "train prompts", "stage2_image.py": "train encoder", "evaluate.py": "evaluate"}
LINE = re.compile(
    r"^(?:\$ | {2,})(?:(?:accelerate launch (?:--\w+ \d+ )*-m )?progeo (?!--)"
    r"|(?:python |accelerate launch (?:--\w+ \d+ )*)(?=(?:stage|eval)\w+\.py ))(.*)",
    re.M,
)
"""A command line in a code block, or indented in a comment; the group is what follows `progeo` or `python`."""
COMMON = {"--json", "--quiet", "--verbose"}
OTHER_FLAGS = {"print_completion", "help", "version", "config", "plugin", "max_pixels", "log_format"}
OTHER_FLAGS |= {name.removeprefix("--") for name in COMMON}
OTHER_FLAGS |= {
    "num_processes",
    "nproc_per_node",
    "file_side",
    "steps",
    "descriptors_dimension",
    "array",
    "recursive",
    "rows",
    "added_to",
    "dim",
    "shm",
}  # of accelerate, benchmarks and other programs
OTHER_FLAGS |= {"pull.weight"}  # of docs/my_method.py
TRAINING = settings_of(COMMANDS["train"].load())


def command_lines(text):
    """Command lines, with continuation lines joined."""
    return LINE.findall(re.sub(r" *\\\n\s*", " ", text))


SHOWN = [
    *((page, line) for page, text in (PAGES | HEADS).items() for line in command_lines(text)),
    *((f"progeo {name} --help", command.example.removeprefix("progeo ")) for name, command in COMMANDS.items()),
]


def parsed(line):
    """Parse a command line, without `progeo`, as its command does."""
    words = shlex.split(line, comments=True)
    words = [*SCRIPTS.get(words[0], words[0]).split(), *words[1:]]
    name = next(name for count in (2, 1) if (name := " ".join(words[:count])) in COMMANDS)
    words, plugins = take_option(words[len(name.split()) :], "--plugin", "")
    for plugin in filter(Path.is_file, map(Path, plugins)):  # not those that a reader is to write
        import_plugin(plugin)
    words, _ = take_option(words, "--log_format", "")
    rest = [word for word in words if word not in COMMON]
    command = COMMANDS[name]
    return parse_arguments(command.load(), rest, words=command.words, others=lambda: set(TRAINING))


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda text: text.replace("/", " "))
def test_every_command_line_can_be_parsed(page, line, monkeypatch, plugins_forgotten):
    monkeypatch.chdir(ROOT)
    assert parsed(line)


def test_command_lines_are_found_on_every_page_that_has_some():
    pages = [page for page, _ in SHOWN]
    assert len([page for page in pages if page == "README.md"]) >= 18
    names = ("data", "evaluation", "export", "import", "localization", "training")
    names += ("own_photos", "reproduce", "tour", "troubleshooting")
    assert {*HEADS, *(f"docs/{name}.md" for name in names)} <= set(pages)


@pytest.mark.parametrize(("page", "text"), PAGES.items(), ids=PAGES)
def test_every_path_is_there(page, text):
    for path in re.findall(r"`((?:progeo|configs|docs|benchmarks)/[\w/.]*\w)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
def test_every_flag_is_one_of_a_command(text):
    known = OTHER_FLAGS.union(*(settings_of(command.load()) for command in COMMANDS.values()))
    code = re.findall(r"`[^`\n]+(?:\n[^`\n]+)?`|^    .*$", text, flags=re.M)
    for flag in re.findall(r"(?<![\w-])--([a-z][\w.]*)", "\n".join(code)):
        assert flag in known, flag


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
def test_every_setting_exists(text):
    prose = re.sub(r"```python\n.*?```", "", text, flags=re.S)
    sections = "|".join({name.partition(".")[0] for name in TRAINING if "." in name})
    for name in re.findall(rf"(?<![\w/.])((?:{sections})\.(?!py|json|csv|md|safetensors|onnx|pt2|mat)\w+)\b", prose):
        assert name in TRAINING, name


def test_every_command_is_listed_and_no_other():
    assert re.findall(r"^\| `([\w ]+)` \|", PAGES["docs/commands.md"], flags=re.M) == list(COMMANDS)


def test_every_config_is_listed_and_no_other():
    names = {path.relative_to(ROOT / "progeo/configs").with_suffix("").as_posix() for path in CONFIGS}
    assert set(re.findall(r"^\| `([\w/]+)` \|", PAGES["docs/training.md"].split("## Where")[0], flags=re.M)) == names


def test_every_extra_is_listed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    section = PAGES["docs/install.md"].split("### Extras")[1].split("\n## ")[0]
    assert set(setup["options.extras_require"]) <= set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M))


def test_every_protocol_is_listed_with_its_counts_and_no_other():
    section = PAGES["docs/evaluation.md"].split("## Published numbers")[1].split("\n## ")[0]
    listed = {}
    for cells in (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")):
        names = re.findall(r"`(\w+)`", cells[0])
        queries = re.findall(r"[\d,]*\d", cells[2])
        assert len(names) == len(queries)
        listed |= {name: (cells[1], count) for name, count in zip(names, queries, strict=True)}
    protocols = [load_protocol(name) for name in protocol_names()]
    assert listed == {
        each.name: (f"{each.num_database:,}" if each.num_database else "any number", f"{each.num_queries:,}")
        for each in protocols
    }


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150
