"""The loss terms that training can sum: one table of them all, and the rule for what they need."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any

from progeo.models.options import HeadOptions
from progeo.training.options import (
    AttentionOptions,
    CosineOptions,
    GramOptions,
    MultiSimilarityOptions,
    RegionsOptions,
    SupconOptions,
    TextOptions,
    TripletOptions,
    TuplesOptions,
)

NEEDS = {
    "descriptors": "descriptors (B, D)",
    "map": "the feature map (B, C, h, w) of the backbone",
    "labels": "class labels (B,)",
    "positions": "east and north of images from the centers of their cells in meters (B, 2)",
    "pairs": "several images of a class in a batch, compared together",
    "text": "text features of the classes",
    "tuples": "rows (T, 2 + M) in the micro-batch of each query, its positive and its M negatives",
    "difficult_positives": "rows (T, P) in the micro-batch of the difficult positives of each query, -1 for none",
    "regions": "descriptors (B, R, D) of the regions of the images, the first of the whole image",
    "target_regions": "descriptors of regions by the encoder of the generation before",
    "teacher": "descriptors (B, E) by a teacher",
    "teacher_map": "the feature map (B, C, h, w) of a teacher",
}
"""What a loss term can need. The tensors among them reach it by these names; batches may give others.

They are of one micro-batch, unless it needs `pairs`: then they are of the whole batch of all processes.
"""


@dataclass(frozen=True)
class LossTerm:
    """A loss term: its options, its code and what it needs."""

    options: type
    """Dataclass of its settings, whose field `weight` multiplies the term; 0 disables it."""
    code: str | Callable[..., Any]
    """A function of tensors, or a class of `progeo.training.terms.Term` if it owns modules; by name
    (`package.module:name`) or itself.

    A function gets the tensors it needs and all options but the weight by keyword, and returns the loss, a scalar.
    """
    needs: tuple[str, ...]
    """Names in `NEEDS`, or of tensors that only some way to draw batches gives. The term gets no others."""
    needs_of_options: Mapping[str, str] = field(default_factory=dict)
    """What it needs besides if an option is set (not null, false or 0), by the name of the option."""
    first_generation: int = 0
    """The first generation that it takes part in."""
    learns_classes: bool = False
    """Whether it learns a vector for each class: whether its code is a `Term` with a `classifier`."""

    def __post_init__(self) -> None:
        if not any(each.name == "weight" for each in fields(self.options)):
            raise ValueError(f"{self.options.__name__} needs a field `weight`, which multiplies the loss term.")
        if isinstance(self.needs, str):
            raise ValueError(f"The needs of a loss term are a tuple, such as ({self.needs!r},), got {self.needs!r}.")

    def with_options(self, options: Any) -> "LossTerm":
        """Return this row with everything that it needs with its options."""
        further = (need for option, need in self.needs_of_options.items() if getattr(options, option))
        return replace(self, needs=(*self.needs, *further))

    def load(self) -> Callable[..., Any]:
        """Return the function or class."""
        if not isinstance(self.code, str):
            return self.code
        module, _, name = self.code.partition(":")
        return getattr(import_module(module), name)


LOSS_TERMS: dict[str, LossTerm] = {
    "head": LossTerm(
        HeadOptions,
        "progeo.training.terms:Classification",
        ("descriptors", "labels"),
        {"smoothing_m": "positions"},
        learns_classes=True,
    ),
    "text": LossTerm(TextOptions, "progeo.training.terms:ImageText", ("descriptors", "labels", "text")),
    "triplet": LossTerm(TripletOptions, "progeo.losses.triplet:triplet", ("descriptors", "labels", "pairs")),
    "multi_similarity": LossTerm(
        MultiSimilarityOptions,
        "progeo.losses.multi_similarity:multi_similarity",
        ("descriptors", "labels", "pairs"),
    ),
    "supcon": LossTerm(SupconOptions, "progeo.losses.contrastive:supcon", ("descriptors", "labels", "pairs")),
    "tuples": LossTerm(
        TuplesOptions,
        "progeo.training.tuple_terms:Tuples",
        ("descriptors", "tuples"),
        {"hardest_regions": "regions"},
    ),
    "regions": LossTerm(
        RegionsOptions,
        "progeo.training.tuple_terms:SoftRegions",
        ("regions", "target_regions", "tuples", "difficult_positives"),
        first_generation=1,
    ),
    "gram": LossTerm(GramOptions, "progeo.training.distillation_terms:gram", ("descriptors", "teacher")),
    "attention": LossTerm(AttentionOptions, "progeo.training.distillation_terms:attention", ("map", "teacher_map")),
    "cosine": LossTerm(CosineOptions, "progeo.training.distillation_terms:Cosine", ("descriptors", "teacher")),
}
"""Section of its settings -> loss term."""


def loss_sections() -> dict[str, type]:
    """Return the sections of settings of all loss terms."""
    return {name: term.options for name, term in LOSS_TERMS.items()}


def default_losses() -> dict[str, Any]:
    """Return the default options of all loss terms."""
    return {name: options() for name, options in loss_sections().items()}


def enabled_terms(options: Mapping[str, Any]) -> Iterator[tuple[str, LossTerm]]:
    """Yield the terms whose weight is not 0, with everything that they need with their options."""
    return ((name, term.with_options(options[name])) for name, term in LOSS_TERMS.items() if options[name].weight)


def needs_of(options: Mapping[str, Any]) -> set[str]:
    """Return everything that the enabled terms need."""
    return {need for _, term in enabled_terms(options) for need in term.needs}


def check_needs(options: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Check that a configuration gives every enabled loss term what it needs.

    Args:
        options: options of each loss term by its name.
        given: everything that the configuration gives; where it cannot, what to change, else an empty string.

    Raises:
        ValueError: no term is enabled, or one lacks something.
    """
    if not any(True for _ in enabled_terms(options)):
        weights = ", ".join(f"`{name}.weight`" for name in LOSS_TERMS)
        raise ValueError(f"{weights} are all 0: there is no loss to train with.")
    if all(term.first_generation for _, term in enabled_terms(options)):
        names = ", ".join(f"`{name}.weight`" for name, _ in enabled_terms(options))
        raise ValueError(f"{names} above 0 takes part from the second generation on: the first has no loss.")
    for name, term in enabled_terms(options):
        other = f"set `{name}.weight` 0, or another `training.batches`"
        of_options = {need: option for option, need in term.needs_of_options.items() if getattr(options[name], option)}
        for need in term.needs:
            advice = given.get(need, f"nothing in this configuration gives it: {other}")
            if advice:
                what = f"`{name}.{of_options[need]}`" if need in of_options else f"`{name}.weight` above 0"
                raise ValueError(f"{what} needs {NEEDS.get(need, need)}: {advice}.")
