"""Parse settings dataclasses from the command line and YAML. Only commands read Settings; code below them does not."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from progeo.config.setting_files import RENAMED, read_setting_file

AnySettings = TypeVar("AnySettings")
_HOME = re.compile(r"(--[\w.]+=)?((?:open_clip|torchvision):[^:]*:)?(~[^/]*/.*)", re.DOTALL)
"""A word that contains a path in a home directory; `./~/` is a folder with that name."""
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.?\d+(?=[eE]))([eE][-+]?\d+)?")
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:\d+)+(\.\d*)?")
_WORDS = MappingProxyType({"y": "true", "n": "false", "none": "null"})


def parse_settings(
    kind: type[AnySettings],
    arguments: Sequence[str],
    *,
    program: str,
    positional: bool = False,
    words: str | None = None,
) -> AnySettings:
    """Parse settings from `--config FILE.yaml` and `--section.name value`; later arguments override earlier ones.

    Args:
        kind: the dataclass to fill.
        arguments: the command line.
        program: name of the command in errors and help.
        positional: take settings without a default as positional arguments.
        words: name of the tuple setting that collects all positional arguments.

    Raises:
        FileNotFoundError: a file of settings does not exist.
        ValueError: a file of settings cannot be read or names an unknown setting, or a setting was renamed.
    """
    hints = dict(_hints(kind))
    _check_renamed(arguments)
    arguments = [_with_home(word) for word in arguments]
    if not positional:
        arguments = _with_files(arguments, hints)
    arguments = _with_values(arguments, hints)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=program, description=kind.__doc__, allow_abbrev=False)
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(kind, as_positional=positional)
    if words is not None:
        parser.epilog = f"Plain words are --{words}: {program} A B C ..."
    for action in parser._actions:  # `class_` becomes --class: `class` is a keyword in Python
        if any(option.endswith("_") for option in action.option_strings):
            action.option_strings = [option.rstrip("_") for option in action.option_strings]
            parser._option_string_actions |= dict.fromkeys(action.option_strings, action)
    mappings = [f"--{name}" for name, hint in get_type_hints(kind).items() if get_origin(hint) is dict]
    arguments = _with_pairs(arguments, mappings)
    values = parser.parse_args(arguments if words is None else _with_words(arguments, words))
    return kind(**{name: value for name, value in vars(parser.instantiate(values)).items() if name != "config"})


def _check_renamed(arguments: Sequence[str]) -> None:
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--") and (name := option.removeprefix("--")) in RENAMED:
            raise ValueError(f"{option} is now called --{RENAMED[name]}.")


def _with_home(word: str) -> str:
    """Expand `~` or `~user` where a shell would if the path stood alone."""
    if (match := _HOME.fullmatch(word)) is None:
        return word
    option, source, path = match.groups(default="")
    return f"{option}{source}{os.path.expanduser(path)}"  # noqa: PTH111 - leaves the name of nobody as it is


def _hints(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and type of every setting."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _hints(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _with_files(arguments: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Replace each `--config FILE` by the command-line arguments that give the same settings."""
    words: list[str] = []
    coming = iter(arguments)
    for word in coming:
        option, _, file = word.partition("=")
        if option == "--config" and (file := file or next(coming, "")):
            values = read_setting_file(Path(file), hints.keys())
            words += [f"--{name}={_as_word(file, name, value, hints[name])}" for name, value in values.items()]
        else:
            words.append(word)
    return words


def _as_word(file: str, name: str, value: Any, hint: Any) -> str:
    """Format a value of a YAML file as a command-line argument."""
    is_text = any(kind in (str, Path) or isinstance(kind, str) for kind in _kinds(hint))

    def word(value: Any) -> Any:
        if isinstance(value, list):
            return [word(item) for item in value]
        if not isinstance(value, str):
            return value
        if not is_text and _SEXAGESIMAL.fullmatch(value):
            raise ValueError(f"{file} gives {name} the value {value}, which is no number.")
        return _with_home(value) if is_text else _as_number(value)

    if value is None and NoneType not in get_args(hint):
        raise ValueError(f"{file} gives no value to {name}: give one, or remove the line.")
    found = word(value)
    is_list = not isinstance(value, str) and value is not None
    if is_list and is_text and not {tuple, dict} & {get_origin(part) for part in (hint, *get_args(hint))}:
        raise ValueError(f"{file} gives {name} the value {value}: it must be one word, without brackets.")
    return found if isinstance(found, str) else json.dumps(found)


def _kinds(hint: Any) -> set[Any]:
    """Return all types and literals that a type hint is composed of."""
    parts = get_args(hint)
    return set().union(*map(_kinds, parts)) if parts else {hint}


def _as_number(text: str) -> str:
    """Format a number, boolean or null for the command line: `1e4` becomes an integer, `y` true, `none` null."""
    if _FLOAT.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return _WORDS.get(text.lower(), text)


def _with_values(arguments: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Add `true` after a boolean option without a value, and put lists such as `5,25` in brackets."""
    words: list[str] = []
    expected = None
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if expected is not None:
            words.append(_in_brackets(word, expected))
            expected = None
            continue
        option, equals, value = word.partition("=")
        hint = hints.get(option.removeprefix("--")) if option.startswith("--") else None
        if equals:
            word = f"{option}={_in_brackets(value, hint)}"
        elif bool in _kinds(hint) and following.startswith("--"):
            word = f"{option}=true"
        else:
            expected = hint
        words.append(word)
    return words


def _in_brackets(value: str, hint: Any) -> str:
    """Format the value of a list setting as a list of numbers or comma-separated names; keep other values."""
    if value.startswith("[") or not any(get_origin(part) is tuple for part in (hint, *get_args(hint))):
        return value
    if any(kind is str or isinstance(kind, str) for kind in _kinds(hint)):
        return json.dumps([name.strip() for name in value.split(",")])
    is_several = "," in value or get_origin(hint) is tuple
    return f"[{value}]" if is_several else value


def _with_pairs(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Merge the NAME=VALUE words after a mapping option into the single JSON value that the parser takes."""
    pairs: dict[str, dict[str, str]] = {}
    others: list[str] = []
    option = ""
    for argument in arguments:
        before, equals, after = argument.partition("=")
        if argument in options:
            option = argument
        elif before in options and "=" in after:  # --columns=path=photo
            option = ""
            name, _, value = after.partition("=")
            pairs.setdefault(before, {})[name] = value
        elif option and equals and not argument.startswith(("-", "{")):
            pairs.setdefault(option, {})[before] = after
            continue
        else:
            option = ""
        others.append(argument)
    return [each for each in others if each.split("=")[0] not in pairs] + [
        word for option, values in pairs.items() for word in (option, json.dumps(values))
    ]


def _with_words(arguments: Sequence[str], setting: str) -> list[str]:
    """Collect positional arguments into `setting`; every other option takes exactly one value."""
    words: list[str] = []
    options: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("--") and "=" not in before
        (options if is_value or argument.startswith("-") else words).append(argument)
    return [*options, f"--{setting}", json.dumps(words)] if words else options


def plain_values(settings: Any) -> dict[str, Any]:
    """Convert settings to nested dicts of plain YAML types, which `--config` can read back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, Path):  # `~` would be expanded to a home directory when read back
            return f"./{value}" if str(value).startswith("~") else str(value)
        # Convert PositiveInt and similar types to plain numbers.
        return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)

    return plain(dataclasses.asdict(settings))
