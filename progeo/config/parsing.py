"""Parse the settings of a command from the command line and YAML files."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from progeo.config.help import COMMON
from progeo.config.settings import NEEDED, Setting, build_arguments, settings_of
from progeo.config.yaml_files import RENAMED, find_setting_file, read_setting_file

_HOME = re.compile(r"((?:\w+:[^:]*|hub):)?(~[^/]*/.*)", re.DOTALL)
"""A value that contains a path in a home directory; `./~/` is a folder with that name."""
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.?\d+(?=[eE]))([eE][-+]?\d+)?")
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:\d+)+(\.\d*)?")
_SWITCHED = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))
_WORDS = {"y": "true", "n": "false", "none": "null"}
_COMMON = [option.split()[0].removeprefix("--") for option in COMMON]


class UsageError(ValueError):
    """The command line or a file of settings does not fit the command."""


def parse_arguments(
    function: Callable[..., Any],
    arguments: Sequence[str],
    *,
    words: Sequence[str] = (),
    others: Callable[[], set[str]] = set,
) -> dict[str, Any]:
    """Parse the arguments of a command's function from `--config FILE`, `--name value` and plain words.

    Later arguments override earlier ones.

    Args:
        function: the command; see `settings_of`.
        arguments: the command line.
        words: names of the settings that plain words give, in order; a last name that ends in `...` takes all others.
        others: returns the names of settings of other commands, which a file may hold too.

    Raises:
        FileNotFoundError: a file of settings does not exist.
        UsageError: a setting is unknown, missing or has a wrong value; the message names all of them.
        ValueError: a file of settings cannot be read.
    """
    settings = settings_of(function)
    files: dict[str, Path] = {}
    given = list(_given(arguments, settings, words, others, files))
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    names = {name for name, _ in given}
    for name in names:  # all settings would take several times as long
        parser.add_argument(f"--{name}", type=settings[name].hint)
    flags = [f"--{name}={text}" for name, text in given]
    try:
        found = parser.parse_args(flags)
    except ArgumentError:
        raise UsageError(" ".join(_wrong_values(parser, flags, settings, files))) from None
    values = {name: found[name] if name in names else setting.default for name, setting in settings.items()}
    missing = [
        name for name, setting in settings.items() if setting.default is NEEDED and values[name] in (NEEDED, None)
    ]
    if missing:
        raise UsageError(" ".join(f"--{name} is required: {settings[name].text}" for name in missing))
    return build_arguments(function, values)


def take_option(arguments: Sequence[str], option: str, what: str) -> tuple[list[str], list[str]]:
    """Take all `--option VALUE` out of the arguments; return the other arguments, and the values.

    Args:
        option: such as `--plugin`, an option of every command.
        what: the kind of value, for errors.

    Raises:
        UsageError: there is no value after the option.
    """
    others: list[str] = []
    values: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name != option:
            others.append(word)
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        if not value:
            raise UsageError(f"{option} needs a value: {what}.")
        values.append(value)
    return others, values


def _given(
    arguments: Sequence[str],
    settings: Mapping[str, Setting],
    words: Sequence[str],
    others: Callable[[], set[str]],
    files: dict[str, Path],
) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of every setting on the command line, as the parser takes it.

    The file of each value that a file gives is added to `files`, by the word that the parser takes.
    """
    rest, plain, flagged = list(arguments), [], set()
    mappings: dict[str, dict[str, Any]] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
            plain.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name == "config":
            if not equals and not rest:
                raise UsageError("--config needs a file of settings.")
            file = find_setting_file(with_home(value if equals else rest.pop(0)))
            for key, content in read_setting_file(file, settings.keys(), others).items():
                text = _of_yaml(file, settings[key], content)
                files[f"--{key}={text}"] = file
                yield key, text
            continue
        setting = _setting(word, name, settings, others)
        values = [value] if equals else _values(setting, rest)
        flagged.add(name)
        if setting.is_mapping:
            mappings.setdefault(name, {}).update(_pairs(name, values))
        else:
            yield name, _of_words(setting, values)
    for name, pairs in mappings.items():
        yield name, json.dumps(_values_of(settings[name], pairs))
    yield from _of_plain_words(plain, words, flagged)


def _setting(word: str, name: str, settings: Mapping[str, Setting], others: Callable[[], set[str]]) -> Setting:
    if word.startswith("--") and name in settings:
        return settings[name]
    if name in others():
        raise UsageError(f"--{name} is no option of this command, but of `progeo train`: leave it out.")
    if name in RENAMED and RENAMED[name] in settings:
        raise UsageError(f"--{name} is now called --{RENAMED[name]}.")
    if name in _COMMON:
        raise UsageError(f"--{name} takes no value: give it alone.")
    same = [known for known in settings if known.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same or get_close_matches(name, [*settings, *_COMMON], 2)
    raise UsageError(f"{word.partition('=')[0]} is no option.{_suggestion([f'--{each}' for each in near[:3]])}")


def _values(setting: Setting, rest: list[str]) -> list[str]:
    """Take the values of an option without an equals sign from the words that follow it."""
    values: list[str] = []
    while rest and not re.match(r"--[a-zA-Z]", rest[0]):
        if setting.is_switch and rest[0].lower() not in _SWITCHED:
            break
        is_number = _NUMBER.fullmatch(rest[0]) is not None
        if values and not (setting.is_mapping or (setting.may_be_list and (setting.is_text or is_number))):
            break
        if values and setting.is_mapping and "=" not in rest[0]:
            break
        values.append(rest.pop(0))
    if not values and not setting.is_switch:
        raise UsageError(f"--{setting.name} needs a value: {setting.text}")
    return values or ["true"]


def _of_words(setting: Setting, values: Sequence[str]) -> str:
    """Format the values of an option as the parser takes them; lists of numbers and names need no brackets.

    A comma separates numbers and names, but is a letter of a path.
    """
    values = [with_home(value) for value in values]
    if not setting.may_be_list or (len(values) == 1 and values[0].startswith("[")):
        return values[0]
    is_joined = len(values) == 1 and Path not in setting.kinds
    parts = [part.strip() for part in values[0].split(",")] if is_joined else values
    if setting.is_text:
        return json.dumps(parts)
    if parts == ["null"] and setting.may_be_null:
        return "null"
    return f"[{','.join(parts)}]" if len(parts) > 1 or setting.is_list else parts[0]


def _pairs(name: str, values: Sequence[str]) -> dict[str, Any]:
    """Split NAME=VALUE words, or read a JSON object."""
    if len(values) == 1 and values[0].startswith("{"):
        with suppress(ValueError):
            return {str(key): value for key, value in json.loads(values[0]).items()}
    if any("=" not in value for value in values):
        raise UsageError(f"--{name} takes NAME=VALUE ..., got {' '.join(values)}.")
    return {key: value for key, _, value in (each.partition("=") for each in values)}


def _values_of(setting: Setting, pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the values of a mapping: numbers, true, false and null, unless the setting takes text only."""

    def value(text: Any) -> Any:
        if Any not in setting.kinds:
            return str(text)
        if not isinstance(text, str):
            return text
        if _NUMBER.fullmatch(text):
            number = float(text)
            return number if "." in text or not number.is_integer() else int(number)
        return {"true": True, "false": False, "null": None}.get(text.lower(), text)

    return {name: value(text) for name, text in pairs.items()}


def _of_plain_words(plain: Sequence[str], words: Sequence[str], flagged: set[str]) -> Iterator[tuple[str, str]]:
    plain = [with_home(word) for word in plain]
    for index, name in enumerate(words):
        rest = plain[index:]
        if name.endswith("..."):
            name, value, plain = name.removesuffix("..."), json.dumps(rest), plain[:index]
        else:
            value = rest[0] if rest else ""
        if rest and name in flagged:
            raise UsageError(f"{rest[0]} and --{name} are the same setting: give it once.")
        if rest:
            yield name, value
    if len(plain) > len(words):
        takes = " ".join(name.upper() for name in words) or "no plain words"
        raise UsageError(f"{plain[len(words)]!r} is one word too many: the command takes {takes}, and options.")


def with_home(word: str) -> str:
    """Expand `~` or `~user` where a shell would if the path stood alone."""
    if (match := _HOME.fullmatch(word)) is None:
        return word
    source, path = match.groups(default="")
    return f"{source}{os.path.expanduser(path)}"  # noqa: PTH111 - leaves the name of nobody as it is


def _of_yaml(file: Path, setting: Setting, value: Any) -> str:
    """Format a value of a YAML file as the parser takes it."""

    def word(value: Any) -> Any:
        if isinstance(value, list):
            return [word(item) for item in value]
        if not isinstance(value, str):
            return value
        if not setting.is_text and _SEXAGESIMAL.fullmatch(value):
            raise ValueError(f"{file} gives {setting.name} the value {value}, which is no number.")
        return with_home(value) if setting.is_text else _as_number(value)

    if value is None and not setting.may_be_null:
        raise ValueError(f"{file} gives no value to {setting.name}: give one, or remove the line.")
    if setting.is_list and isinstance(value, str) and not value.startswith("["):
        value = [value]
    found = _values_of(setting, value) if setting.is_mapping and isinstance(value, dict) else word(value)
    is_list = not isinstance(value, str) and value is not None
    if is_list and setting.is_text and not (setting.may_be_list or setting.is_mapping):
        raise ValueError(f"{file} gives {setting.name} the value {value}: it must be one word, without brackets.")
    return found if isinstance(found, str) else json.dumps(found)


def _as_number(text: str) -> str:
    """Format a number, boolean or null for the command line: `1e4` becomes an integer, `y` true, `none` null."""
    if _FLOAT.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return _WORDS.get(text.lower(), text)


def _wrong_values(
    parser: ArgumentParser, given: Sequence[str], settings: Mapping[str, Setting], files: Mapping[str, Path]
) -> Iterator[str]:
    """Yield a sentence for each value that the parser refuses."""
    for word in given:
        try:
            parser.parse_args([word])
        except ArgumentError:
            name, _, value = word.removeprefix("--").partition("=")
            place = f" in {files[word]}" if word in files else ""
            yield f"--{name} must be {expected(settings[name])}, got {value}{place}."


def expected(setting: Setting) -> str:
    """Say which values a setting takes."""
    if setting.is_mapping:
        what = "NAME=VALUE pairs"
    elif setting.choices and not setting.takes_numbers:
        what = f"one of {', '.join(setting.choices)}"
    elif setting.is_switch:
        what = "true or false"
    elif setting.is_text and not setting.takes_numbers:
        what = "text"
    else:
        docs = " ".join(kind.__doc__ or "" for kind in setting.kinds if isinstance(kind, type))
        limits = re.search(r"(?<=restricted to be ).*", docs)
        is_whole = any(isinstance(kind, type) and issubclass(kind, int) for kind in setting.kinds)
        what = f"{'a whole number' if is_whole else 'a number'}{f' {limits[0].strip()}' if limits else ''}"
        what = " or ".join([what, *setting.choices])
    if setting.lengths:
        what = f"{' or '.join(map(str, setting.lengths))} values, each {what}"
    elif setting.may_be_list:
        what = f"a list, each {what}" if setting.is_list else f"{what}, or a list"
    return f"{what}, or null" if setting.may_be_null else what


def _suggestion(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(names)}?" if names else " See --help."
