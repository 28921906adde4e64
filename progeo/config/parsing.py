"""Settings dataclasses <-> YAML <-> command line. Stages take them apart; nothing below a stage sees them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

AnySettings = TypeVar("AnySettings")


def parse_settings(
    kind: type[AnySettings],
    arguments: Sequence[str],
    *,
    program: str,
    positional: bool = False,
    words: str | None = None,
) -> AnySettings:
    """Read settings from `--config FILE.yaml` and `--section.name value`, the latter winning where it comes later.

    Args:
        kind: the dataclass to fill.
        arguments: the command line.
        program: how errors and help call the command.
        positional: settings without a default come as plain words.
        words: the setting, a tuple, that all plain words together are.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=program, description=kind.__doc__, allow_abbrev=False)
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(kind, as_positional=positional)
    if words is not None:
        parser.epilog = f"Plain words are --{words}: {program} A B C ..."
    for action in parser._actions:  # `class_` is --class: Python keeps the word for itself
        if any(option.endswith("_") for option in action.option_strings):
            action.option_strings = [option.rstrip("_") for option in action.option_strings]
            parser._option_string_actions |= dict.fromkeys(action.option_strings, action)
    mappings = [f"--{name}" for name, hint in get_type_hints(kind).items() if get_origin(hint) is dict]
    arguments = _with_pairs(arguments, mappings)
    values = parser.parse_args(arguments if words is None else _with_words(arguments, words))
    return kind(**{name: value for name, value in vars(parser.instantiate(values)).items() if name != "config"})


def _with_pairs(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words NAME=VALUE that follow an option of a mapping as the one value that it takes."""
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
    """The plain words as a value of `setting`: every other option takes exactly one value."""
    words: list[str] = []
    options: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("--") and "=" not in before
        (options if is_value or argument.startswith("-") else words).append(argument)
    return [*options, f"--{setting}", json.dumps(words)] if words else options


def plain_values(settings: Any) -> dict[str, Any]:
    """Settings as nested dicts of YAML's own kinds of values, from which `--config` reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return str(value)
        # PositiveInt and its like become plain numbers again.
        return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)

    return plain(dataclasses.asdict(settings))
