"""What a trainer trains: networks with their losses, batches and optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn


@dataclass(frozen=True)
class Measures:
    """Results of a validation."""

    values: Mapping[str, float]
    """Value of each measure by name, such as R@1; shown with one decimal, as percent are."""
    primary: str
    """The measure that decides which epoch is the best; larger is better."""
    prefix: str = "val "
    """Prefix of the names in logs and files."""

    def __post_init__(self) -> None:
        if math.isnan(self.best):
            raise ValueError(f"The {self.primary} of a validation is not a number: no epoch could be the best.")

    @property
    def named(self) -> dict[str, float]:
        """The values by their names in logs and files, such as `val R@1`."""
        return {f"{self.prefix}{name}": value for name, value in self.values.items()}

    @property
    def best(self) -> float:
        """The value of the primary measure."""
        return self.values[self.primary]


class Task(ABC):
    """A network in training, with everything that a step needs."""

    model: nn.Module
    """The network; its moving average is taken where the options say so."""
    optimizer: AcceleratedOptimizer
    """Prepared by Accelerate; each of its parameter groups has a `base_lr`."""
    steps_per_epoch: int
    images_per_step: float
    """Mean number of images of a step, for the throughput."""
    title: str = ""
    """Beginning of the lines of this task in the log, such as `group 1/2, `."""
    metrics: Mapping[str, Any] = MappingProxyType({})
    """Values that tell the lines of this task in the file of metrics from those of other tasks of the same run."""

    @property
    def learning_rates(self) -> dict[str, float]:
        """The current learning rates by name."""
        return {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    @abstractmethod
    def batches(self, epoch: int, *, first_step: int) -> Iterable[Sequence[Any]]:
        """Return the batches of an epoch from a step on, each as micro-batches of equal size."""

    @abstractmethod
    def losses(self, piece: Any) -> Mapping[str, Tensor]:
        """Compute the weighted loss terms of a micro-batch."""

    @abstractmethod
    def name(self, epoch: int) -> str:
        """Return the name of an epoch for the progress bar and errors."""

    def group_of(self, epoch: int) -> int:
        """Return the index of the group that an epoch trains: losses of different groups are not compared."""
        return 0

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state of networks, losses, batches and validation that is required to resume."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

    def begin(self) -> None:
        """Prepare the networks before the first step of a new training; not called when one is resumed."""

    def begin_generation(self, index: int) -> None:
        """Begin with the first weights again; called before the first epoch of each generation but the first."""
        raise NotImplementedError(f"{type(self).__name__} trains a single generation.")

    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch, or the rest of one."""

    def end_epoch(self, epoch: int) -> None:
        """Release what `begin_epoch` prepared."""

    def validate(self, model: nn.Module) -> Measures | None:
        """Validate `model`, the network or its average; None if the task has no validation."""
        return None

    def keep(
        self, folder: Path, model: nn.Module, *, epoch: int, values: Mapping[str, float], terms: Mapping[str, float]
    ) -> None:
        """Save `model` as a result of the training, with the values of its validation and the mean loss terms."""
