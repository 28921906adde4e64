"""Settings of the two stages of training, assembled from the options of the parts they set up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from progeo.config.settings import SECTIONS
from progeo.data.options import Augmentation, DataOptions
from progeo.engine.options import Precision, Tracker
from progeo.models.options import EncoderOptions, ModelOptions
from progeo.places.options import CellOptions
from progeo.training.batch_kinds import batch_sections, default_batch_options
from progeo.training.loss_terms import default_losses, loss_sections
from progeo.training.options import (
    FinalTestOptions,
    PromptOptions,
    TeacherOptions,
    TrainingOptions,
    ValidationOptions,
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that both stages share."""

    out: Path
    """Folder of the run. Stage 1 writes to its stage1/, stage 2 to its stage2/."""
    data: DataOptions
    seed: int = 0
    """Seed of all random choices, from 0 to 2**64 - 1."""
    resume: bool = False
    """Resume the run in the run folder from its newest checkpoint; without a checkpoint, start from scratch. If false,
    a folder that holds a run is refused."""
    wait: bool = False
    """Wait for another process that writes to the run folder. If false, a run folder in use is refused."""
    mixed_precision: Precision = "no"
    """Precision of the networks in training and feature extraction: no is float32; bf16 takes less memory and is
    faster on a GPU, and on a CPU with AMX (Intel Xeon since 2023), but may be slower on others, which the log of a
    training tells; fp16 needs a GPU."""
    cells: CellOptions = field(default_factory=CellOptions)
    model: ModelOptions = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must be from 0 to 2**64 - 1, got {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class PromptSettings(RunSettings):
    """Settings of the run."""

    prompts: PromptOptions = field(default_factory=PromptOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts.batch_norm == "batch" and self.data.eval_batch_size == 1:
            raise ValueError(
                "`data.eval_batch_size` must be at least 2 where `prompts.batch_norm` is batch, got 1: an image alone "
                "has no statistics of a batch. Use for example 64."
            )


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(RunSettings):
    """Settings of the run."""

    validation: ValidationOptions = field(default_factory=ValidationOptions)
    test: FinalTestOptions = field(default_factory=FinalTestOptions)
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that log stage 2: tensorboard, wandb, or both. A resumed run is a new one in wandb."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    losses: Mapping[str, Any] = field(default_factory=default_losses, metadata={SECTIONS: loss_sections})
    """Options of each loss term, by the name of its section."""
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    batches: Mapping[str, Any] = field(default_factory=default_batch_options, metadata={SECTIONS: batch_sections})
    """Options of each way to draw batches that has some, by the name of its section."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: TrainingOptions = field(default_factory=TrainingOptions)
