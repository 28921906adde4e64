"""The enabled loss terms of a training, with the modules that are trained besides the encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.engine.accelerator import distributed, full_precision, gathered_with_gradient
from progeo.losses import distance_smoothed_labels, image_text_cross_entropy
from progeo.models.classifier import Classifier
from progeo.models.heads import build_head
from progeo.models.options import HeadOptions
from progeo.models.text_space import TextSpace, chosen_temperature
from progeo.training.loss_terms import LossTerm, enabled_terms
from progeo.training.options import TextOptions
from progeo.training.places import TrainingPlaces

_NO_TERMS = ("loss", "skipped", "epoch", "encoder_learning_rate", "backbone_learning_rate")
"""Names of the numbers in logs that are no loss terms."""
Inputs = Mapping[str, Tensor]
"""What a term computes from, by the names of its needs: `descriptors` float32 (b, D), `labels` int64 (b,) ..."""


@dataclass(frozen=True)
class TermSource:
    """What terms are built from."""

    descriptor_dim: int
    classes_per_group: Sequence[int]
    text_features: Sequence[Tensor] | None = None
    """Text features of each group (C, E), if a term needs them."""
    class_ids: Sequence[np.ndarray] | None = None
    """Class ids of each group, int64 (C, 3), which smoothed labels are computed from."""
    teacher_dim: int | None = None
    """Dimension E of the descriptors of the teacher, if there is one."""
    logit_scale: float | None = None
    """Factor of the cosines of the CLIP of the texts, if a term takes the temperature of that CLIP."""


class Term(nn.Module):
    """A loss term that owns modules: `forward(inputs) -> loss`, before its weight.

    Args:
        options: its options.
        source: what it is built from.
    """

    generation = 0
    """Index of the current generation."""

    def __init__(self, options: Any, source: TermSource) -> None:
        super().__init__()

    def title(self, name: str) -> str:
        """Return the name that it has in logs, given that of its row."""
        return name

    def of_group(self, index: int) -> nn.Module:
        """Return the module that computes the term for a group."""
        return self

    def classifier(self, places: TrainingPlaces) -> Classifier | None:
        """Return the vectors learned so far for the classes of all groups; None if the term learns none."""
        return None


class Classification(Term):
    """Cross-entropy of a classifier, one for each group."""

    def __init__(self, options: HeadOptions, source: TermSource) -> None:
        super().__init__(options, source)
        self.kind, self.scale = options.kind, options.scale
        class_ids: Sequence[np.ndarray | None] = source.class_ids or len(source.classes_per_group) * [None]
        self.heads = nn.ModuleList(
            _Classifier(options, source.descriptor_dim, count, ids)
            for count, ids in zip(source.classes_per_group, class_ids, strict=True)
        )

    def title(self, name: str) -> str:
        """Return the kind of the classifiers."""
        return self.kind

    def of_group(self, index: int) -> nn.Module:
        """Return the classifier of a group."""
        return self.heads[index]

    def classifier(self, places: TrainingPlaces) -> Classifier:
        """Return the rows of the heads of all groups, with the bias of linear ones."""
        is_linear = self.kind == "linear"
        partition = places.partition
        return Classifier(
            kind=self.kind,
            class_ids=np.concatenate([group.class_ids for group in partition.groups]),
            weight=self._of_all_groups("weight"),
            bias=self._of_all_groups("bias") if is_linear else None,
            num_images=np.concatenate([np.diff(group.offsets) for group in partition.groups]),
            classes_per_group=tuple(group.num_classes for group in partition.groups),
            scale=1.0 if is_linear else float(self.scale),
            cells=partition.settings,
            fingerprint=partition.fingerprint,
            frame=places.frame,
        )

    def _of_all_groups(self, name: str) -> np.ndarray:
        """Return a parameter of the heads of all groups, one group after the other, float32."""
        return torch.cat([getattr(each.head, name).detach().float().cpu() for each in self.heads]).numpy()


class _Classifier(nn.Module):
    cells_m: Tensor

    def __init__(self, options: HeadOptions, dim: int, num_classes: int, class_ids: np.ndarray | None) -> None:
        super().__init__()
        self.head = build_head(
            options.kind, dim, num_classes, options.scale, options.margin, easy_margin=options.easy_margin
        )
        self.smoothing_m = options.smoothing_m
        if self.smoothing_m is not None:
            assert class_ids is not None  # their positions are compared with those of images
            self.register_buffer("cells_m", torch.from_numpy(class_ids[:, :2].copy()), persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        labels = inputs["labels"]
        logits = self.head(inputs["descriptors"], labels)
        if self.smoothing_m is None:
            return F.cross_entropy(logits, labels)
        targets = distance_smoothed_labels(inputs["positions"], labels, self.cells_m, smoothing_m=self.smoothing_m)
        return F.cross_entropy(logits, targets)


class ImageText(Term):
    """Image-text cross-entropy against the texts of a group, in a space that all groups share."""

    def __init__(self, options: TextOptions, source: TermSource) -> None:
        super().__init__(options, source)
        assert source.text_features is not None  # it needs them
        self.text_features, self.label_smoothing = source.text_features, options.label_smoothing
        self.space = TextSpace(
            source.descriptor_dim,
            self.text_features[0].shape[1],
            normalized=options.normalized,
            temperature=chosen_temperature(options.temperature, source.logit_scale),
            learn_temperature=options.learn_temperature,
        )

    def title(self, name: str) -> str:
        """Return `image_text`."""
        return "image_text"

    def of_group(self, index: int) -> nn.Module:
        """Return the comparison with the texts of a group."""
        return _Texts(self.space, self.text_features[index], self.label_smoothing)


class _Texts(nn.Module):
    texts: Tensor

    def __init__(self, space: TextSpace, features: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self.space, self.label_smoothing = space, label_smoothing
        self.register_buffer("texts", space.texts(features), persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        in_text_space = self.space(inputs["descriptors"])
        return image_text_cross_entropy(in_text_space, self.texts, inputs["labels"], self.label_smoothing)


class _Function(Term):
    """A term that is a function of tensors."""

    def __init__(self, row: LossTerm, options: Any, source: TermSource) -> None:
        super().__init__(options, source)
        self.function = row.load()
        self.text_features = source.text_features if "text" in row.needs else None
        self.options = {name: value for name, value in vars(options).items() if name != "weight"}

    def of_group(self, index: int) -> nn.Module:
        """Return the function, with the texts of a group if it needs them."""
        return self if self.text_features is None else _FunctionOfTexts(self, self.text_features[index])

    def forward(self, inputs: Inputs) -> Tensor:
        """Call the function with the tensors that it needs."""
        return self.function(**inputs, **self.options)


class _FunctionOfTexts(nn.Module):
    texts: Tensor

    def __init__(self, function: _Function, texts: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("texts", texts, persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.function({**inputs, "text": self.texts})


class Terms(nn.Module):
    """All enabled terms: their weighted values, modules and states.

    Args:
        options: options of each loss term by the name of its row.
        source: what terms are built from.
        seed: seed of the initial weights.
        accelerator: gives the device and the processes.
    """

    def __init__(self, options: Mapping[str, Any], source: TermSource, *, seed: int, accelerator: Accelerator) -> None:
        super().__init__()
        self.source, self.accelerator = source, accelerator
        self.rows = dict(enabled_terms(options))
        self.weights = {name: options[name].weight for name in self.rows}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            terms = {name: _build(row, options[name], source) for name, row in self.rows.items()}
        self.terms: Mapping[str, Term] = nn.ModuleDict(terms)  # type: ignore[assignment] # which is one
        self.titles = _titles(terms)
        self._of_group: dict[str, nn.Module] = {}

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return all parameters: those of each module of a list, such as a classifier, and the others of each term."""
        groups = []
        for term in self.terms.values():
            lists = [child for child in term.children() if isinstance(child, nn.ModuleList)]
            of_lists = [list(module.parameters()) for each in lists for module in each]
            in_lists = {parameter for group in of_lists for parameter in group}
            groups += [*of_lists, [each for each in term.parameters() if each not in in_lists]]
        return [group for group in groups if group]

    def classifier(self, places: TrainingPlaces) -> Classifier | None:
        """Return the vectors that a term has learned for the classes; None if no term learns any."""
        found = (term.classifier(places) for term in self.terms.values())
        return next((each for each in found if each is not None), None)

    def modules_of_group(self, index: int) -> list[nn.Module]:
        """Return the modules that are on the device while a group is trained."""
        return [term.of_group(index) for term in self.terms.values()]

    def begin_group(self, index: int, optimizer: torch.optim.Optimizer, *, generation: int = 0) -> None:
        """Move the modules of a group and their optimizer state to the device; those of idle groups stay on the CPU.

        Args:
            generation: index of the generation of the epoch; terms of later ones take no part.
        """
        for term in self.terms.values():
            term.generation = generation
        modules = dict(zip(self.terms, self.modules_of_group(index), strict=True))
        modules = {name: each for name, each in modules.items() if self.rows[name].first_generation <= generation}
        _move(modules.values(), self.accelerator.device, optimizer)
        self._of_group = {name: distributed(module, self.accelerator) for name, module in modules.items()}

    def end_group(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        """Move them back to the CPU."""
        self._of_group = {}
        _move(self.modules_of_group(index), torch.device("cpu"), optimizer)

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Compute the weighted value of every term, in float32, by its name in logs."""
        values = {}
        with full_precision(self.accelerator):
            floats = {name: each.float() if each.is_floating_point() else each for name, each in inputs.items()}
            for name, module in self._of_group.items():
                needs = self.rows[name].needs
                own = {need: floats[need] for need in needs if need in floats}
                value = module(self._of_all_processes(own) if "pairs" in needs else own)
                if value.ndim:
                    raise ValueError(f"The loss term {name} must be a scalar, got the shape {tuple(value.shape)}.")
                values[self.titles[name]] = self.weights[name] * value
        return values

    def _of_all_processes(self, inputs: Inputs) -> dict[str, Tensor]:
        return {
            name: gathered_with_gradient(each, self.accelerator)
            if each.requires_grad
            else self.accelerator.gather(each)
            for name, each in inputs.items()
        }


def _build(row: LossTerm, options: Any, source: TermSource) -> Term:
    code = row.load()
    if not isinstance(code, type):
        return _Function(row, options, source)
    if not issubclass(code, Term):
        raise ValueError(f"The class {code.__name__} of a loss term must be a subclass of Term.")
    return code(options, source)


def _titles(terms: Mapping[str, Term]) -> dict[str, str]:
    """Return the name of each term in logs.

    Raises:
        ValueError: it is also the name of another term, or of a number that is no term.
    """
    titles = {name: term.title(name) for name, term in terms.items()}
    taken = list(_NO_TERMS)
    for name, title in titles.items():
        if title in taken:
            raise ValueError(f"The loss term {name} is called {title} in logs, as another number is: rename it.")
        taken.append(title)
    return titles


def _move(modules: Iterable[nn.Module], device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    for module in modules:
        module.to(device)
        for parameter in module.parameters():
            state = optimizer.state.get(parameter, {})
            state |= {name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)}
