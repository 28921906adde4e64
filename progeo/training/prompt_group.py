"""Stage 1 for one group: its prompts, their training state and their image-text matching accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.data.samplers import permuted_batches
from progeo.engine.accelerator import autocast, set_scaler_state
from progeo.engine.randomness import seeded_generator
from progeo.engine.row_adam import RowAdam
from progeo.engine.transfer import to_device
from progeo.evaluation.matching import Matching, matching_accuracy
from progeo.features.store import Rows
from progeo.losses import supervised_contrastive
from progeo.models.prompts import PromptLearner
from progeo.models.text_space import chosen_temperature
from progeo.models.text_towers.tower import TextTower
from progeo.training.options import PromptOptions
from progeo.training.task import Measures, Task

_TEXTS_AT_ONCE = 1024
_SIMILARITIES_AT_ONCE = 2**24


class GroupImages:
    """Image features of one group and their labels.

    Args:
        features: features of all images.
        rows: rows of the group's images, int64 (n,).
        labels: their class labels, int64 (n,).
        accelerator: gives the device.
        on_device: keep the features on the device, instead of reading each batch from disk.
    """

    def __init__(
        self,
        features: Rows,
        rows: np.ndarray,
        *,
        labels: np.ndarray,
        accelerator: Accelerator,
        on_device: bool,
    ) -> None:
        self.features = features
        self.rows = rows
        self.labels = torch.from_numpy(labels)
        """Class labels of all images, int64 (n,), on the CPU."""
        self.device = accelerator.device
        self.resident = torch.from_numpy(features.take(rows)).to(self.device) if on_device else None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Load features float32 (B, E) and labels int64 (B,) of these images of the group onto the device."""
        chosen = torch.from_numpy(indices)
        labels = self.labels[chosen]
        if self.resident is not None:
            rows, labels = to_device((chosen, labels), self.device)
            return self.resident[rows].float(), labels
        features, labels = to_device((torch.from_numpy(self.features.take(self.rows[indices])), labels), self.device)
        return features.float(), labels


class GroupTraining(Task):
    """Training of the prompts of one group, determined by the seed, the group and its images alone."""

    def __init__(
        self,
        index: int,
        num_classes: int,
        *,
        images: GroupImages,
        unseen: GroupImages | None = None,
        title: str = "",
        words: Sequence[str] = (),
        tower: TextTower,
        prompts: PromptOptions,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.index, self.num_classes = index, num_classes
        self.prompts, self.seed = prompts, seed
        self.images, self.unseen, self.title = images, unseen, title
        self.temperature = chosen_temperature(prompts.temperature, tower.logit_scale)
        self.kept: dict[str, Any] | None = None
        """Vectors, number and loss of the best epoch; None if the last epoch is kept."""
        self.accelerator = accelerator
        self.metrics = {"group": index}
        self.steps_per_epoch = -(-len(images) // prompts.batch_size)
        self.images_per_step = len(images) / self.steps_per_epoch  # the last batch of an epoch is smaller
        generator = seeded_generator(seed, index)
        self.learner = self.model = PromptLearner(
            tower,
            num_classes,
            prompts.template,
            prompts.context_length,
            words=words,
            position=prompts.class_token_position or "end",
            shared=prompts.shared_context,
            initial_words=prompts.initial_words,
            sparse=True,
            generator=generator,
        ).to(accelerator.device)
        rate = prompts.learning_rate
        group = {"params": list(self.learner.parameters()), "lr": rate, "base_lr": rate}
        self.optimizer = accelerator.prepare_optimizer(RowAdam([group]))
        set_scaler_state(accelerator, None)

    def name(self, epoch: int) -> str:
        """Return the group and the epoch."""
        return f"stage 1, group {self.index + 1}, epoch {epoch + 1}/{self.prompts.epochs}"

    def batches(self, epoch: int, *, first_step: int) -> list[list[np.ndarray]]:
        """Return every image of the group once, in batches of their indices, int64 (B,)."""
        batches = permuted_batches(len(self.images), self.prompts.batch_size, seed=self.seed, epoch=epoch)
        return [[batch] for batch in batches[first_step:]]

    def losses(self, piece: np.ndarray) -> dict[str, Tensor]:
        """Compute the loss terms of a batch."""
        features, labels = self.images.batch(piece)
        texts = self.learner(self.images.labels[torch.from_numpy(piece)])
        images, texts = self._compared(features), self._compared(texts)
        return {
            "image_to_text": supervised_contrastive(images, texts, labels, labels, self.temperature),
            "text_to_image": supervised_contrastive(texts, images, labels, labels, self.temperature),
        }

    def validate(self, model: nn.Module) -> Measures | None:
        """Measure the accuracies of the prompts, if there are held-out images or training may stop early."""
        if self.unseen is None and self.prompts.patience is None:
            return None
        primary = "image_to_text_accuracy" if self.unseen is None else "held_out_image_to_text_accuracy"
        return Measures(self.accuracies(self.text_features()), primary, prefix="")

    def keep(
        self, folder: Path, model: nn.Module, *, epoch: int, values: Mapping[str, float], terms: Mapping[str, float]
    ) -> None:
        """Keep the vectors of the best epoch in memory and in checkpoints, if training may stop early."""
        if self.prompts.patience is not None:
            self.kept = {"context": self.learner.context.detach().clone(), "epoch": epoch, "loss": terms["loss"]}

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume the group."""
        return {**self.learner.state_dict(), **({} if self.kept is None else {"kept": self.kept})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        state = dict(state)
        self.kept = state.pop("kept", None)
        self.learner.load_state_dict(state)

    @torch.no_grad()
    def restore_kept(self) -> None:
        """Take the vectors of the best epoch, if they are kept, as those of the group."""
        if self.kept is not None:
            self.learner.context.copy_(self.kept["context"])

    @torch.inference_mode()
    def text_features(self) -> Tensor:
        """Compute the text features of every class, float32 (C, E)."""
        labels = torch.arange(self.num_classes, device=self.accelerator.device)
        with autocast(self.accelerator):
            return torch.cat([self.learner(part).float() for part in labels.split(_TEXTS_AT_ONCE)])

    def accuracies(self, text_features: Tensor) -> dict[str, float]:
        """Compute the matching accuracies of trained and of held-out images among all classes, in percent."""
        trained = self._matching(self.images, text_features)
        found = {"image_to_text_accuracy": trained.image_to_text, "text_to_image_accuracy": trained.text_to_image}
        if self.unseen is not None:
            unseen = self._matching(self.unseen, text_features)
            found["held_out_image_to_text_accuracy"] = unseen.image_to_text
            found["held_out_text_to_image_accuracy"] = unseen.text_to_image
        return found

    def _matching(self, images: GroupImages, text_features: Tensor) -> Matching:
        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            size = max(1, _SIMILARITIES_AT_ONCE // self.num_classes)
            for start in range(0, len(images), size):
                features, labels = images.batch(np.arange(start, min(start + size, len(images))))
                yield self._compared(features), labels

        return matching_accuracy(batches(), self._compared(text_features))

    def _compared(self, features: Tensor) -> Tensor:
        """L2-normalize features if the options say so, as the loss compares them."""
        return F.normalize(features) if self.prompts.normalized else features


def held_out_images(labels: np.ndarray, share: float, *, seed: int, group: int) -> np.ndarray:
    """Draw a share of each class's images, rounded up, leaving at least one, by (seed, group).

    Args:
        labels: class label of each image, int64 (n,).
        share: from 0 to 1.

    Returns:
        bool (n,): whether an image is held out.
    """
    held_out = np.zeros(len(labels), bool)
    if not share:
        return held_out
    counts = np.bincount(labels)
    # The 1 separates this draw from those of the batches, which are by (seed, epoch).
    order = np.lexsort((np.random.default_rng([seed, group, 1]).random(len(labels)), labels))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.ceil(np.round(share * counts, 9)), counts - 1)
    held_out[order] = rank < np.repeat(wanted, counts)
    return held_out
