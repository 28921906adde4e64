"""Stage 2 as a task: the encoder, its loss terms, batches and validation."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.data.augmentation import jitter_colors
from progeo.data.datasets import CachedImages, CatalogueImages
from progeo.engine.accelerator import copy_from_main_process, distributed
from progeo.engine.randomness import seeded_generator
from progeo.export.weights import save_encoder
from progeo.models.aggregation import AGGREGATIONS
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder
from progeo.training.batches import Batches, MicroBatch
from progeo.training.options import TrainingOptions
from progeo.training.task import Measures, Task
from progeo.training.terms import Terms
from progeo.training.validation import Validation

_INITIAL_IMAGES = 512
_LOCAL_FEATURES_PER_IMAGE = 100
"""Sample that an aggregation is initialized with; NetVLAD's authors take about as many local features."""


class ImageTraining(Task):
    """The training of an encoder.

    Args:
        options: options of the training.
        encoder: on the device.
        terms: the loss terms.
        batches: the training images.
        validation: the validation after every epoch.
        settings: plain settings of the run, kept with its encoders.
        seed: seed of the sample that the aggregation is initialized with; None keeps that of a trained encoder.
        accelerator: provides precision, device and processes.
    """

    def __init__(
        self,
        options: TrainingOptions,
        encoder: Encoder,
        *,
        terms: Terms,
        batches: Batches,
        validation: Validation,
        settings: Mapping[str, Any],
        seed: int | None,
        accelerator: Accelerator,
    ) -> None:
        self.options, self.settings, self.seed, self.accelerator = options, settings, seed, accelerator
        self.encoder, self.terms, self.validation, self._batches = encoder, terms, validation, batches
        self.model = encoder
        self.steps_per_epoch, self.images_per_step = options.iterations_per_epoch, options.batch_size
        if options.gradient_checkpointing:
            encoder.family.checkpoint_gradients(encoder.backbone)
        groups = _parameter_groups(encoder, terms, options)
        self.optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, fused=True))
        self._distributed_encoder = distributed(encoder, accelerator)
        self._needs_map = any("map" in row.needs for row in terms.rows.values())
        if options.compile:
            encoder.compile()

    @property
    def num_groups(self) -> int:
        """Number of groups of classes."""
        return len(self.terms.source.classes_per_group)

    @property
    def images(self) -> CatalogueImages | CachedImages:
        """The training images."""
        return self._batches.images

    def name(self, epoch: int) -> str:
        """Return the epoch and its group."""
        return f"stage 2, epoch {epoch + 1}/{self.options.epochs}, group {self.group_of(epoch) + 1}"

    def group_of(self, epoch: int) -> int:
        """Return the index of the group of classes that an epoch trains."""
        return self._batches.group_of(epoch)

    def begin(self) -> None:
        """Initialize an aggregation that needs it with local features of training images."""
        name, aggregation = self.encoder.spec.aggregation, self.encoder.aggregation
        initialize = AGGREGATIONS[name].initialize
        if initialize is None or self.seed is None:
            return
        before = list(aggregation.parameters())
        initialize(aggregation, self._local_features(self.seed), self.seed)
        now = list(aggregation.parameters())
        if [*map(id, now)] != [*map(id, before)]:  # the optimizer has those of before
            raise ValueError(f"`initialize` of the aggregation {name} must fill its parameters, not replace them.")
        copy_from_main_process(aggregation, self.accelerator)

    def begin_epoch(self, epoch: int) -> None:
        """Move the modules of the group of this epoch to the device."""
        self.terms.begin_group(self.group_of(epoch), self.optimizer)
        self.encoder.train()

    def end_epoch(self, epoch: int) -> None:
        """Move the modules of the group of this epoch back to the CPU."""
        self.terms.end_group(self.group_of(epoch), self.optimizer)

    def batches(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Return the batches of an epoch."""
        return self._batches.of_epoch(epoch, first_step=first_step)

    def losses(self, piece: MicroBatch) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a micro-batch."""
        images = self._normalized(piece)
        inputs = {name: target.to(self.accelerator.device) for name, target in piece.targets.items()}
        if self._needs_map:
            inputs["descriptors"], (inputs["map"], _) = self._distributed_encoder(images, with_features=True)
        else:
            inputs["descriptors"] = self._distributed_encoder(images)
        return self.terms(inputs)

    def validate(self, model: nn.Module) -> Measures:
        """Validate the encoder or its average."""
        classifier = self.classifier() if self.validation.needs_classifier else None
        return self.validation.measure(cast(Encoder, model), self.accelerator, classifier=classifier)

    def keep(self, folder: Path, model: nn.Module, *, epoch: int, values: Mapping[str, float]) -> None:
        """Save the encoder or its average, and the classifier, whose weights are not averaged."""
        provenance = {"epoch": epoch, "settings": self.settings}
        save_encoder(folder, cast(Encoder, model), provenance=provenance, recalls=values, classifier=self.classifier())

    def classifier(self) -> Classifier | None:
        """Return the vectors learned so far for the classes; None if no loss term learns any."""
        return self.terms.classifier(self._batches.places)

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "terms": self.terms,
            "batches": self._batches,
            "validation": self.validation,
        }

    def _normalized(self, piece: MicroBatch) -> Tensor:
        images = piece.images.to(self.accelerator.device)
        return self.encoder.normalize(jitter_colors(images, piece.changes))

    @torch.no_grad()
    def _local_features(self, seed: int) -> Tensor:
        """Compute random local features (n, C) of the first training images, the same in every process."""
        self.encoder.eval()
        generator = seeded_generator(seed, self.accelerator.process_index)
        found = []
        for pieces in islice(self.batches(0, first_step=0), -(-_INITIAL_IMAGES // self.images_per_step)):
            for piece in pieces:
                _, (feature_map, _) = self.encoder(self._normalized(piece), with_features=True)
                local = feature_map.flatten(2).transpose(1, 2)  # (b, h w, C)
                chosen = torch.randperm(local.shape[1], generator=generator)[:_LOCAL_FEATURES_PER_IMAGE]
                found.append(local[:, chosen.to(local.device)].flatten(0, 1).float())
        return self.accelerator.gather(torch.cat(found))


def _parameter_groups(encoder: Encoder, terms: Terms, options: TrainingOptions) -> list[dict[str, Any]]:
    """Split the parameters into the encoder's matrices and kernels, which decay, its others, and those of the terms.

    The classifier of an idle group gets no gradient, so the optimizer does not change it.
    """
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    constant = options.head_schedule == "constant"
    kinds = [
        ([p for p in trained if p.ndim > 1], options.encoder_learning_rate, options.weight_decay, False),
        ([p for p in trained if p.ndim <= 1], options.encoder_learning_rate, 0.0, False),
        *((group, options.head_learning_rate, 0.0, constant) for group in terms.parameter_groups()),
    ]
    names = ("params", "base_lr", "weight_decay", "constant")
    return [{**dict(zip(names, kind, strict=True)), "lr": kind[1]} for kind in kinds]
