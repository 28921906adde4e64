"""The ways to draw the batches of stage 2: one table of them all, with their settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from progeo.training.options import MiningOptions, TrainingOptions

if TYPE_CHECKING:
    from progeo.training.batches import Batches


@dataclass(frozen=True)
class BatchKind:
    """A way to draw batches: its code and its settings."""

    code: "str | type[Batches]"
    """A class of `progeo.training.batches.Batches`, by name (`package.module:name`) or itself."""
    section: str | None = None
    """Name of the section of its settings; None has none besides those of all training."""
    options: type | None = None
    """Dataclass of the settings in its section."""

    def load(self) -> "type[Batches]":
        """Return the class."""
        if not isinstance(self.code, str):
            return self.code
        module, _, name = self.code.partition(":")
        return getattr(import_module(module), name)


BATCHES: dict[str, BatchKind] = {
    "classes": BatchKind("progeo.training.batches:ClassBatches"),
    "places": BatchKind("progeo.training.batches:PlaceBatches"),
    "tuples": BatchKind("progeo.training.tuples:TupleBatches", "mining", MiningOptions),
    "images": BatchKind("progeo.training.batches:ImageBatches"),
}
"""`training.batches` -> how batches are drawn."""


def batch_sections() -> dict[str, type]:
    """Return the sections of settings of all ways to draw batches."""
    return {kind.section: kind.options for kind in BATCHES.values() if kind.section and kind.options}


def default_batch_options() -> dict[str, Any]:
    """Return the default options of all ways to draw batches."""
    return {name: options() for name, options in batch_sections().items()}


def batch_kind(training: TrainingOptions) -> BatchKind:
    """Return the row of `BATCHES` that the options name.

    Raises:
        ValueError: there is none.
    """
    if training.batches not in BATCHES:
        raise ValueError(f"`training.batches` must be one of {', '.join(BATCHES)}, got {training.batches!r}.")
    return BATCHES[training.batches]


def options_of(kind: BatchKind, options: Mapping[str, Any]) -> Any:
    """Return the options of a way to draw batches, among those of all by section; None if it has none."""
    return None if kind.section is None else options[kind.section]
