"""The settings of a command: the parameters of its function, as flags and as names in YAML.

A parameter that is an option dataclass stands for its fields, and a field that is one for a section of settings with
dotted names, such as `cells.cell_side_m`.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
from docstring_parser import Docstring

NEEDED = object()
"""Default of a setting that must be given."""
SECTIONS = "sections"
"""Metadata of a field that holds several option dataclasses by name: a function that returns these dataclasses.

Their sections stand beside the field, not below it."""
TITLE = "title"
"""Metadata of a field that begins a group of its own in the help: the title of this group."""


@dataclass(frozen=True)
class Setting:
    """A setting of a command."""

    name: str
    """Dotted name: the flag without dashes, and the path in a YAML file."""
    hint: Any
    default: Any
    text: str
    """Help text."""
    section: str
    """Title of its group in the help; empty for a parameter of the function itself."""

    @property
    def kinds(self) -> set[Any]:
        """All types and literals that the type hint is composed of."""
        return _kinds(self.hint)

    @property
    def is_switch(self) -> bool:
        """Whether the flag may stand without a value."""
        return bool in self.kinds

    @property
    def is_mapping(self) -> bool:
        """Whether the values are pairs NAME=VALUE."""
        return any(get_origin(part) is dict for part in (self.hint, *get_args(self.hint)))

    @property
    def is_list(self) -> bool:
        """Whether the setting always holds several values, or null."""
        return all(get_origin(part) is tuple for part in self._alternatives)

    @property
    def may_be_list(self) -> bool:
        """Whether the setting may hold several values."""
        return any(get_origin(part) is tuple for part in (self.hint, *get_args(self.hint)))

    @property
    def lengths(self) -> list[int]:
        """Allowed numbers of values, if the setting always holds several and these are fixed."""
        are_fixed = all(get_origin(part) is tuple and ... not in get_args(part) for part in self._alternatives)
        return sorted(len(get_args(part)) for part in self._alternatives) if are_fixed else []

    @property
    def _alternatives(self) -> list[Any]:
        """The types that the hint allows, without None."""
        is_union = get_origin(self.hint) in (Union, UnionType)
        return [part for part in get_args(self.hint) if part is not NoneType] if is_union else [self.hint]

    @property
    def is_text(self) -> bool:
        """Whether values are text, paths or named choices, not numbers."""
        return any(kind in (str, Path) or isinstance(kind, str) for kind in self.kinds)

    @property
    def takes_numbers(self) -> bool:
        """Whether values are numbers, and maybe a few words."""
        return any(isinstance(kind, type) and issubclass(kind, int | float) and kind is not bool for kind in self.kinds)

    @property
    def may_be_null(self) -> bool:
        """Whether null is a value."""
        return NoneType in get_args(self.hint)

    @property
    def choices(self) -> list[str]:
        """The named choices, if the setting has some."""
        return [str(kind) for part in (self.hint, *get_args(self.hint)) for kind in _literals(part)]


def settings_of(function: Callable[..., Any]) -> dict[str, Setting]:
    """List the settings of a command by dotted name."""
    texts = {each.arg_name: each.description for each in docstring_parser.parse(function.__doc__ or "").params}
    found: list[Setting] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            found += _fields(parameter.annotation)
        else:
            default = NEEDED if parameter.default is parameter.empty else parameter.default
            found.append(Setting(name, parameter.annotation, default, _one_line(texts.get(name)), ""))
    return {setting.name: setting for setting in found}


def build_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Build the arguments of a command's function from the values of its settings, by dotted name."""
    parameters = inspect.signature(function).parameters
    return {
        name: _built(parameter.annotation, values) if dataclasses.is_dataclass(parameter.annotation) else values[name]
        for name, parameter in parameters.items()
    }


def default_values(kind: Any) -> dict[str, Any]:
    """Return the default values of a settings dataclass as plain YAML types, by dotted name."""
    return {each.name: _plain(each.default) for each in _fields(kind) if each.default is not NEEDED}


def plain_values(settings: Any) -> dict[str, Any]:
    """Convert a settings dataclass to nested dicts of plain YAML types, which `--config` can read back."""
    values: dict[str, Any] = _plain(dataclasses.asdict(settings))
    for field in dataclasses.fields(settings):
        if SECTIONS in field.metadata:
            values |= values.pop(field.name)
    return values


def shown(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value)) or "[]"
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):  # `~` would be expanded to a home directory when read back
        return f"./{value}" if str(value).startswith("~") else str(value)
    # Convert PositiveInt and similar types to plain numbers.
    return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)


def _fields(kind: Any, prefix: str = "") -> Iterator[Setting]:
    hints = get_type_hints(kind)
    docs = [_documented(base) for base in kind.__mro__[-2::-1]]
    texts = {each.arg_name: each.description for doc in docs for each in doc.params}
    title = docs[-1].short_description or ""
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        title = field.metadata.get(TITLE, title)
        if SECTIONS in field.metadata:
            for section, options in field.metadata[SECTIONS]().items():
                yield from _fields(options, f"{prefix}{section}.")
            continue
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{name}.")
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        text = _one_line(texts.get(field.name))
        yield Setting(name, hint, NEEDED if default is MISSING else default, text, title)


@functools.cache
def _documented(kind: type) -> Docstring:
    """Parse the docstrings of a dataclass and of its fields, once."""
    return docstring_parser.parse_from_object(kind)


def _built(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if SECTIONS in field.metadata:
            sections = field.metadata[SECTIONS]()
            if taken := sections.keys() & {each.name for each in dataclasses.fields(kind)}:
                raise ValueError(f"{', '.join(taken)} is a setting already: a plugin must give its row another name.")
            fields[field.name] = {
                each: _built(options, values, f"{prefix}{each}.") for each, options in sections.items()
            }
        elif dataclasses.is_dataclass(hint):
            fields[field.name] = _built(hint, values, f"{name}.")
        else:
            fields[field.name] = values[name]
    return kind(**fields)


def _kinds(hint: Any) -> set[Any]:
    parts = get_args(hint)
    return set().union(*map(_kinds, parts)) if parts else {hint}


def _literals(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
