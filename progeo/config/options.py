"""Take the values of option dataclasses from settings that have fields of the same names."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyOptions = TypeVar("AnyOptions", bound="DataclassInstance")


def options_of(kind: type[AnyOptions], settings: Any) -> AnyOptions:
    """Build an option dataclass from the settings of the same names."""
    return kind(**{field.name: getattr(settings, field.name) for field in fields(kind)})
