"""The loss terms of stage 2, with the modules that are trained besides the encoder."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.engine.accelerator import distributed, full_precision, gathered_with_gradient
from progeo.losses import batch_hard_triplet, image_text_cross_entropy, weighted_triplet
from progeo.models.heads import build_head
from progeo.models.options import HeadOptions
from progeo.models.text_space import TextSpace
from progeo.training.options import TextOptions, TrainingOptions, TripletOptions

Terms = Callable[[Tensor, Tensor], dict[str, Tensor]]


class ImageLosses:
    """A classifier for each group, the projection from descriptors to text space, and their loss terms.

    Args:
        head: options of the classifiers.
        text: options of the image-text loss.
        triplet: options of the triplet loss.
        classes_per_group: number of classes of each group.
        descriptor_dim: D.
        text_features: text features of each group (C, E); None trains without text.
        seed: seed of the initial weights.
        accelerator: gives the device and the processes.
    """

    def __init__(
        self,
        head: HeadOptions,
        text: TextOptions,
        triplet: TripletOptions,
        *,
        classes_per_group: Sequence[int],
        descriptor_dim: int,
        text_features: Sequence[Tensor] | None,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.head, self.text, self.triplet = head, text, triplet
        self.accelerator = accelerator
        self.text_features = text_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = [
                build_head(head.kind, descriptor_dim, count, head.scale, head.margin) for count in classes_per_group
            ]
            self.text_space = TextSpace(
                descriptor_dim,
                descriptor_dim if text_features is None else text_features[0].shape[1],
                normalized=text.normalized,
                temperature=text.temperature,
                learn_temperature=text.learn_temperature and text_features is not None,
            ).to(accelerator.device)
        self._distributed_text_space = distributed(self.text_space, accelerator)

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that are trained here."""
        return [*self.heads, self.text_space]

    def of_group(self, index: int) -> Terms:
        """Return a function from descriptors (B, D) and labels (B,) to the weighted loss terms of a group."""
        texts = None
        if self.text_features is not None:
            texts = self.text_space.texts(self.text_features[index].to(self.accelerator.device))
        return partial(self._terms, distributed(self.heads[index], self.accelerator), texts)

    def move_head(self, index: int, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        """Move a classifier and its optimizer state to a device; those of idle groups stay on the CPU."""
        self.heads[index].to(device)
        for parameter in self.heads[index].parameters():
            state = optimizer.state.get(parameter, {})
            state |= {name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume a run."""
        return {"heads": [head.state_dict() for head in self.heads], "text_space": self.text_space.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for head, head_state in zip(self.heads, state["heads"], strict=True):
            head.load_state_dict(head_state)
        self.text_space.load_state_dict(state["text_space"])

    def _terms(self, head: nn.Module, texts: Tensor | None, descriptors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        with full_precision(self.accelerator):
            descriptors = descriptors.float()
            if self.head.weight:
                terms[self.head.kind] = self.head.weight * F.cross_entropy(head(descriptors, labels), labels)
            if texts is not None:
                in_text_space = self._distributed_text_space(descriptors)
                loss = image_text_cross_entropy(in_text_space, texts, labels, self.text.label_smoothing)
                terms["image_text"] = self.text.weight * loss
            if self.triplet.weight:
                terms["triplet"] = self.triplet.weight * _triplet(
                    gathered_with_gradient(descriptors, self.accelerator),
                    self.accelerator.gather(labels),
                    self.triplet,
                )
        return terms


def check_losses(head: HeadOptions, text: TextOptions, triplet: TripletOptions, training: TrainingOptions) -> None:
    """Check that the options enable a loss term and that every enabled term can be computed.

    Raises:
        ValueError: no loss is enabled, or the options contradict an enabled one.
    """
    if not (head.weight or text.weight or triplet.weight):
        raise ValueError("`head.weight`, `text.weight` and `triplet.weight` are all 0: there is no loss to train with.")
    if triplet.weight and training.images_per_class < 2:
        raise ValueError(
            "`triplet.weight` above 0 needs several images of a place in a batch: set `images_per_class` to 2 or more."
        )
    if triplet.weight and training.images_per_class == training.batch_size:
        raise ValueError(
            f"`triplet.weight` above 0 needs several places in a batch: set `images_per_class` below "
            f"`training.batch_size` {training.batch_size}."
        )
    if triplet.weight and training.micro_batches > 1:
        raise ValueError(
            f"`triplet.weight` above 0 compares all images of a batch: `micro_batches` must be 1, got "
            f"{training.micro_batches}. A ViT needs less memory with `gradient_checkpointing` too."
        )
    if triplet.margin is not None and triplet.kind != "batch_hard":
        raise ValueError(f"`triplet.margin` is for `triplet.kind` batch_hard only, got {triplet.kind}: leave it out.")


def _triplet(descriptors: Tensor, labels: Tensor, triplet: TripletOptions) -> Tensor:
    if triplet.kind == "batch_hard":
        return batch_hard_triplet(descriptors, labels, triplet.margin)
    return weighted_triplet(descriptors, labels)
