"""Check values from JSON files against the types of dataclasses and typed dicts."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from progeo.files import read_json

Kind = TypeVar("Kind")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_LONGEST = 100


def read_json_as(path: Path, kind: type[Kind], *, advice: str = "Put the file back.") -> Kind:
    """Read a JSON file and convert its value, see `as_kind`."""
    return as_kind(read_json(path), kind, path, advice=advice)


def as_kind(
    values: Any,
    kind: type[Kind],
    source: Path | str,
    *,
    advice: str = "Put the file back.",
) -> Kind:
    """Convert the value of a JSON file to a type, see `converted`.

    Args:
        source: what the value is from, for the error message.
        advice: last sentence of the error message.

    Raises:
        ValueError: the value is not of this type; the message names the source and the field.
    """
    try:
        return converted(values, kind)
    except ValueError as error:
        raise ValueError(f"{source} is not as progeo writes it: {error} {advice}") from None


def converted(values: Any, kind: type[Kind]) -> Kind:
    """Convert a JSON value to a type whose fields say what is allowed; a dataclass allows no other fields.

    Args:
        kind: dataclass, typed dict (which keeps only its own fields), dict or list, of types that msgspec knows; a
            value of a type that it does not know must be of that type already.

    Raises:
        ValueError: the value is not of this type; the message names the field.
    """
    if is_dataclass(kind) and isinstance(values, Mapping):
        known = [field.name for field in fields(kind)]
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown {', '.join(map(repr, unknown))}; its fields are {', '.join(known)}.")
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{_in_words(str(error), values, kind)}.") from None


def _in_words(message: str, values: Any, kind: type) -> str:
    """Return a message of msgspec, such as "Expected `int` >= 1 - at `$.probes`", with the value that was given."""
    reason, _, where = message.replace("`", "").partition(" - at $")
    steps = _STEP.findall(where)
    name = steps[0][0] if steps else ""
    with suppress(LookupError, TypeError):
        for field, index in steps:
            values = values[field or int(index)]
    allowed = get_type_hints(kind).get(name) if name else None
    if get_origin(allowed) is Literal:
        reason = f"expected one of {', '.join(map(str, get_args(allowed)))}"
    if reason.lower().startswith(("expected", "number", "object missing")):
        reason = f"{reason[0].lower()}{reason[1:]}".partition(", got ")[0].replace(
            "object missing required", "missing the"
        )
    if not reason.startswith("missing"):
        reason = f"{reason}, got {repr(values)[:_LONGEST]}"
    return f"{reason} in {where.removeprefix('.')}" if where else reason
