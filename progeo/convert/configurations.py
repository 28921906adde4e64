"""JSON configurations of weights, whose values are checked as they are read."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from progeo.files import read_json

_T = TypeVar("_T")
MIN_STD = 0.001
"""Minimum of a pixel std in 0..1."""


@dataclass(frozen=True)
class Configuration:
    """A JSON configuration or a section of one; missing and null values get a default."""

    path: Path
    values: Mapping[str, Any]

    def part(self, name: str) -> "Configuration":
        """Return a nested section; empty if it is missing."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{self.path} is not a configuration: its {name} is a {type(value).__name__}.")
        return Configuration(self.path, value)

    def number(self, name: str, usual: float) -> float:
        """Return a number above 0."""
        value = self._value(name, usual)
        if not _is_number(value) or value <= 0:
            raise ValueError(f"{self.path}: {name} should be a number above 0, is {value!r}.")
        return value

    def word(self, name: str, usual: str) -> str:
        """Return a string."""
        value = self._value(name, usual)
        if not isinstance(value, str):
            raise ValueError(f"{self.path}: {name} should be a word, is {value!r}.")
        return value

    def color(self, name: str, minimum: float) -> tuple[float, ...] | None:
        """Return numbers from `minimum` to 1 for red, green and blue; None if they are missing."""
        value = self._value(name, None)
        if value is None:
            return None
        is_triple = isinstance(value, list) and len(value) == 3
        if not is_triple or not all(_is_number(part) and minimum <= part <= 1 for part in value):
            raise ValueError(f"{self.path}: {name} should be three numbers from {minimum} to 1, is {value!r}.")
        return tuple(value)

    def choice(self, name: str, values: Mapping[int, _T] | Mapping[str, _T], usual: int | str) -> _T:
        """Return what a value stands for, one of the keys of `values`."""
        value = self._value(name, usual)
        if (found := {repr(key): item for key, item in values.items()}.get(repr(value))) is None:
            raise ValueError(f"{self.path}: {name} should be {' or '.join(map(repr, values))}, is {value!r}.")
        return found

    def _value(self, name: str, usual: Any) -> Any:
        value = self.values.get(name)
        return usual if value is None else value


def read_configuration(path: Path) -> Configuration:
    """Read a configuration; empty if there is no file.

    Raises:
        ValueError: the file is not a configuration.
    """
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a configuration.")
    return Configuration(path, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
