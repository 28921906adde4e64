"""Stage 1 for one group: its prompts, their training state and their image-text matching accuracy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from open_clip import CLIP
from torch import Tensor
from tqdm import tqdm

from progeo.data.samplers import permuted_batches
from progeo.engine.accelerator import scaler_state, set_scaler_state
from progeo.engine.loop import train_epoch
from progeo.engine.randomness import seeded_generator
from progeo.evaluation.matching import Matching, matching_accuracy
from progeo.features.store import ShardedRows
from progeo.losses import supervised_contrastive
from progeo.models.prompts import PromptLearner
from progeo.training.options import PromptOptions

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
        features: ShardedRows,
        rows: np.ndarray,
        *,
        labels: np.ndarray,
        accelerator: Accelerator,
        on_device: bool,
    ) -> None:
        self.features = features
        self.rows = rows
        self.labels = torch.from_numpy(labels).to(accelerator.device)
        self.device = accelerator.device
        self.resident = torch.from_numpy(features.take(rows)).to(self.device) if on_device else None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Load features float32 (B, E) and labels int64 (B,) of these images of the group onto the device."""
        if self.resident is not None:
            features = self.resident[torch.from_numpy(indices).to(self.device)]
        else:
            features = torch.from_numpy(self.features.take(self.rows[indices])).to(self.device)
        return features.float(), self.labels[torch.from_numpy(indices).to(self.device)]


class GroupTraining:
    """Training of the prompts of one group, determined by the seed, the group and its images alone."""

    def __init__(
        self,
        index: int,
        num_classes: int,
        *,
        images: GroupImages,
        clip: CLIP,
        prompts: PromptOptions,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.index = index
        self.prompts = prompts
        self.seed = seed
        self.images = images
        self.accelerator = accelerator
        self.epoch = 0
        """Number of finished epochs."""
        self.terms: dict[str, float] = {}
        """Mean loss terms of the last epoch."""
        self.num_classes = num_classes
        generator = seeded_generator(seed, index)
        self.learner = PromptLearner(
            clip, num_classes, self.prompts.template, self.prompts.context_length, generator=generator
        ).to(accelerator.device)
        adam = torch.optim.Adam(self.learner.parameters(), lr=self.prompts.learning_rate, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=self.prompts.epochs)
        self.optimizer = accelerator.prepare(adam)
        set_scaler_state(accelerator, None)

    def run_epoch(self, bar: tqdm, description: str) -> None:
        """Train on every image of the group once."""
        batches = permuted_batches(len(self.images), self.prompts.batch_size, seed=self.seed, epoch=self.epoch)
        self.terms = train_epoch(
            ([batch] for batch in batches),
            self.step,
            self.optimizer,
            self.accelerator,
            bar=bar,
            description=description,
            alone=True,
        )
        self.scheduler.step()
        self.epoch += 1

    def step(self, batch: np.ndarray) -> dict[str, Tensor]:
        """Compute the loss terms of a batch of the group's images, given by index, int64 (B,)."""
        features, labels = self.images.batch(batch)
        images, texts = self._compared(features), self._compared(self.learner(labels))
        temperature = self.prompts.temperature
        return {
            "image_to_text": supervised_contrastive(images, texts, labels, labels, temperature),
            "text_to_image": supervised_contrastive(texts, images, labels, labels, temperature),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume the group."""
        return {
            "epoch": self.epoch,
            "terms": self.terms,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler_state(self.accelerator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.epoch, self.terms = state["epoch"], state["terms"]
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        set_scaler_state(self.accelerator, state["scaler"])

    @torch.inference_mode()
    def text_features(self) -> Tensor:
        """Compute the text features of every class, float32 (C, E)."""
        labels = torch.arange(self.num_classes, device=self.accelerator.device)
        with self.accelerator.autocast():
            return torch.cat([self.learner(part).float() for part in labels.split(_TEXTS_AT_ONCE)])

    def matching(self, text_features: Tensor) -> Matching:
        """Compute the image-text matching accuracy among all classes of the group."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            size = max(1, _SIMILARITIES_AT_ONCE // self.num_classes)
            for start in range(0, len(self.images), size):
                features, labels = self.images.batch(np.arange(start, min(start + size, len(self.images))))
                yield self._compared(features), labels

        return matching_accuracy(batches(), self._compared(text_features))

    def _compared(self, features: Tensor) -> Tensor:
        """L2-normalize features if the options say so, as the loss compares them."""
        return F.normalize(features) if self.prompts.normalized else features
