"""Stage 2 as a task: the encoder, its loss terms, batches and validation."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.engine.accelerator import copy_from_main_process, distributed
from progeo.engine.transfer import to_device
from progeo.export.weights import save_encoder
from progeo.models.backbones.clip_configurations import ClipConfiguration, has_named_tower
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder, EncoderSpec
from progeo.training.aggregation_start import AggregationStart
from progeo.training.augmented_encoder import AugmentedEncoder
from progeo.training.batches import Batches, MicroBatch
from progeo.training.options import TrainingOptions
from progeo.training.places import LearnedFrom, TrainingPlaces
from progeo.training.task import Measures, Task
from progeo.training.teacher import Teacher
from progeo.training.terms import Terms
from progeo.training.validation import Validation

_TARGET_ROWS = "target_rows"
"""Rows of the queries and difficult positives of a micro-batch, whose regions the target gives soft labels for."""


class ImageTraining(Task):
    """The training of an encoder.

    Args:
        options: options of the training.
        encoder: on the device.
        terms: the loss terms.
        batches: the training images.
        validation: the validation after every epoch.
        settings: plain settings of the run, kept with its encoders.
        start: how the aggregation is initialized; None keeps it, such as that of a trained encoder.
        accelerator: provides precision, device and processes.
        teacher: what the encoder is distilled from; None if no loss term needs it.
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
        start: AggregationStart | None,
        accelerator: Accelerator,
        teacher: Teacher | None = None,
    ) -> None:
        self.options, self.settings, self.start, self.accelerator = options, settings, start, accelerator
        self.encoder, self.terms, self.validation, self.drawn = encoder, terms, validation, batches
        self.teacher, self.model = teacher, encoder
        self.steps_per_epoch, self.images_per_step = batches.steps_per_epoch, batches.images_per_step
        if options.gradient_checkpointing:
            encoder.family.checkpoint_gradients(encoder.backbone)
        groups = _parameter_groups(encoder, terms, options)
        self.optimizer = accelerator.prepare_optimizer(_optimizer(groups, options))
        augmented = AugmentedEncoder(encoder)
        self._augmented = distributed(augmented, accelerator)
        self._needs = {need for row in terms.rows.values() for need in row.needs}
        self._first: dict[str, Any] = {}
        """States of encoder and terms that each generation begins with."""
        self._target: Encoder | None = None
        """The encoder of the generation before, which gives soft labels."""
        if options.compile:
            augmented.compile()

    @property
    def num_groups(self) -> int:
        """Number of groups of classes."""
        return len(self.terms.source.classes_per_group)

    @property
    def bytes_in_memory(self) -> int:
        """Number of bytes of the decoded training images that are kept in memory."""
        return self.drawn.bytes_in_memory

    @property
    def learned_from(self) -> LearnedFrom:
        """Everything that must be unchanged to resume the training."""
        digest = None if self.teacher is None else self.teacher.digest
        source, validation = self.drawn.source, self.validation.catalogues
        spec = self.encoder.spec
        return LearnedFrom(
            source,
            validation,
            self.terms.source.text_features,
            digest,
            configuration=spec.configuration,
            former_configuration=_former_configuration(spec),
        )

    @property
    def learning_rates(self) -> dict[str, float]:
        """The current learning rates of the encoder and, if a loss term has parameters, of these."""
        encoder, _, *others = [group["lr"] for group in self.optimizer.param_groups]
        backbone, heads = (others[:2], others[2:]) if self.options.backbone_factor != 1 else ([], others)
        rates = {"encoder": [encoder], "backbone": backbone, "head": heads}
        return {f"{name}_learning_rate": of_groups[0] for name, of_groups in rates.items() if of_groups}

    def name(self, epoch: int) -> str:
        """Return the epoch and its group."""
        return f"stage 2, epoch {epoch + 1}/{self.options.epochs}, group {self.group_of(epoch) + 1}"

    def group_of(self, epoch: int) -> int:
        """Return the index of the group of classes that an epoch trains."""
        return self.drawn.group_of(epoch)

    def begin(self) -> None:
        """Initialize an aggregation that needs it with local features of training images."""
        if self.start is not None:
            before = list(self.encoder.aggregation.parameters())
            self.start.initialize(self.encoder, self.drawn.source.catalogues, self.drawn.data, self.accelerator)
            now = list(self.encoder.aggregation.parameters())
            if [*map(id, now)] != [*map(id, before)]:  # the optimizer has those of before
                name = self.encoder.spec.aggregation
                raise ValueError(f"`initialize` of the aggregation {name} must fill its parameters, not replace them.")
        if len(self.options.generations) > 1:
            parts = {"encoder": self.encoder, "terms": self.terms}
            self._first = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def begin_generation(self, index: int) -> None:
        """Make the encoder the target of soft labels, and begin with the first weights again."""
        copy_from_main_process(self.encoder, self.accelerator)  # batch-norm statistics may differ
        if not self.options.fixed_target or self._target is None:
            state = self._first["encoder"] if self.options.fixed_target else self.encoder.state_dict()
            self._set_target(state)
        self.encoder.load_state_dict(self._first["encoder"])
        self.terms.load_state_dict(self._first["terms"])

    def begin_epoch(self, epoch: int) -> None:
        """Move the modules of the group of this epoch to the device."""
        generation = self.options.generation_of(epoch).index
        self.terms.begin_group(self.group_of(epoch), self.optimizer, generation=generation)
        self.encoder.train()

    def end_epoch(self, epoch: int) -> None:
        """Move the modules of the group of this epoch back to the CPU."""
        self.terms.end_group(self.group_of(epoch), self.optimizer)

    def batches(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Return the batches of an epoch."""
        return self.drawn.of_epoch(epoch, first_step=first_step)

    def losses(self, piece: MicroBatch) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a micro-batch."""
        on_the_host = (piece.images, piece.plan, {**piece.targets, **self._targets_on_the_host(piece)})
        pixels, plan, inputs = to_device(on_the_host, self.accelerator.device)
        teacher = self.teacher if self.teacher is not None and not self.teacher.is_cached else None
        encoded = self._augmented(pixels, plan, with_images=teacher is not None)
        inputs["descriptors"] = encoded.descriptors
        if "map" in self._needs:
            inputs["map"] = encoded.features.map
        if "regions" in self._needs:
            inputs["regions"] = self.encoder.regions(encoded.features)
        if _TARGET_ROWS in inputs:
            inputs["target_regions"] = self._target_regions(encoded.normalized, inputs[_TARGET_ROWS])
        if teacher is not None:
            inputs |= teacher(encoded.images, with_map="teacher_map" in self._needs)
        return self.terms(inputs)

    def _targets_on_the_host(self, piece: MicroBatch) -> dict[str, Tensor]:
        """Return further targets that are looked up on the CPU, so that they travel with the others."""
        found = {}
        if "target_regions" in self._needs and self._target is not None:
            positives = piece.targets["difficult_positives"]
            found[_TARGET_ROWS] = torch.unique(torch.cat([piece.targets["tuples"][:, 0], positives[positives >= 0]]))
        if self.teacher is not None and self.teacher.is_cached:
            found["teacher"] = self.teacher.of_rows(piece.targets["rows"])
        return found

    @torch.no_grad()
    def _target_regions(self, images: Tensor, rows: Tensor) -> Tensor:
        """Compute the regions of some rows of the images by the target; those of other images are 0."""
        assert self._target is not None  # there was a generation before
        of_rows = self._target.regions(self._target.features(images[rows]))
        regions = of_rows.new_zeros((len(images), *of_rows.shape[1:]))
        return regions.index_copy_(0, rows, of_rows)

    def _set_target(self, state: Mapping[str, Any]) -> None:
        self._target = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        self._target.load_state_dict(state)

    def validate(self, model: nn.Module) -> Measures | None:
        """Validate the encoder or its average."""
        classifier = self.classifier() if self.validation.needs_classifier else None
        return self.validation.measure(cast(Encoder, model), self.accelerator, classifier=classifier)

    def keep(
        self, folder: Path, model: nn.Module, *, epoch: int, values: Mapping[str, float], terms: Mapping[str, float]
    ) -> None:
        """Save the encoder or its average, and the classifier, whose weights are not averaged."""
        provenance = {"epoch": epoch, "settings": self.settings}
        save_encoder(folder, cast(Encoder, model), provenance=provenance, recalls=values, classifier=self.classifier())

    def classifier(self) -> Classifier | None:
        """Return the vectors learned so far for the classes; None if no loss term learns any."""
        source = self.drawn.source
        return self.terms.classifier(source) if isinstance(source, TrainingPlaces) else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        if self._first:
            state |= {"first": self._first, "target": None if self._target is None else self._target.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if len(self.options.generations) > 1:
            self._first = state["first"]
            if state["target"] is not None:
                self._set_target(state["target"])

    def _parts(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "terms": self.terms,
            "batches": self.drawn,
            "validation": self.validation,
        }


def _optimizer(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def _parameter_groups(encoder: Encoder, terms: Terms, options: TrainingOptions) -> list[dict[str, Any]]:
    """Split the parameters into the encoder's matrices and kernels, which decay, its others, and those of the terms.

    If the backbone has a rate of its own, its parameters follow those of the rest of the encoder. The classifier of an
    idle group gets no gradient, so the optimizer does not change it.
    """
    constant, decay, rate = options.head_schedule == "constant", options.weight_decay, options.encoder_learning_rate
    backbone = {*encoder.backbone.parameters()} if options.backbone_factor != 1 else set()
    parts = [([each for each in encoder.parameters() if each not in backbone], rate)]
    if backbone:
        parts.append(([*encoder.backbone.parameters()], options.backbone_factor * rate))
    kinds = [
        ([each for each in part if each.requires_grad and (each.ndim > 1) == is_matrix], own_rate, own_decay, False)
        for part, own_rate in parts
        for is_matrix, own_decay in ((True, decay), (False, decay * options.decay_norms))
    ]
    kinds += [(group, options.head_learning_rate, 0.0, constant) for group in terms.parameter_groups()]
    names = ("params", "base_lr", "weight_decay", "constant")
    return [{**dict(zip(names, kind, strict=True)), "lr": kind[1]} for kind in kinds]


def _former_configuration(spec: EncoderSpec) -> Mapping[str, Any] | None:
    """Return the configuration that earlier versions, which knew a network by its name alone, used for a backbone.

    It is empty if that was another.
    """
    if spec.configuration is None:
        return None
    if spec.family != "open_clip":  # DINOv2, whose position embedding was resized once for all
        return {"positions_size": list(spec.image_size)}
    is_same = has_named_tower(spec.architecture, ClipConfiguration(spec.configuration))
    return spec.configuration if is_same else {}
