"""What stage 2 trains, and how far it has come: everything here can be saved and gone on with at any step."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from progeo.config import Settings
from progeo.data.datasets import CachedImages, CatalogueImages, LabelledImages
from progeo.data.loaders import Loaded, build_loader, cache_images
from progeo.data.samplers import ClassBatches
from progeo.engine.accelerator import distributed, scaler_state, set_scaler_state
from progeo.engine.checkpoint import newest_checkpoint, prune_checkpoints, save_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.loop import LossNotFinite, Means, progress_bar, train_epoch
from progeo.engine.randomness import seed_layers, seeded_generator
from progeo.engine.run_folder import RunFolder
from progeo.engine.schedules import learning_rate_factor, scale_learning_rates
from progeo.engine.stopping import StopRequest
from progeo.losses import image_text_cross_entropy
from progeo.models.backbones import freeze_layers
from progeo.models.encoder import Encoder, build_encoder
from progeo.models.heads import build_head
from progeo.models.preprocessing import resize_image
from progeo.stages.places import TrainingPlaces
from progeo.stages.prompts import load_text_features


def build_untrained_encoder(settings: Settings) -> Encoder:
    """The encoder that stage 2 starts from."""
    model = settings.model
    encoder = build_encoder(
        model.architecture,
        model.weights,
        model.image_size,
        descriptor_dim=model.descriptor_dim,
        normalised=model.normalised,
        normalisation=model.normalisation,
        align_corners=model.align_corners,
        seed=settings.seed,
    )
    freeze_layers(encoder.backbone, model.frozen)
    return encoder


class ImageTraining:
    """The encoder, a classifier for each group, and their optimizer."""

    def __init__(self, settings: Settings, places: TrainingPlaces, accelerator: Accelerator) -> None:
        self.settings = settings
        self.groups = places.partition.groups
        self.num_images = len(places.catalogue)
        self.accelerator = accelerator
        self.epoch = 0
        """Epochs finished."""
        self.means = Means()
        """Of the loss terms of the epoch that is not finished."""
        self.best_recall = -1.0
        self.epochs_since_best = 0
        self.unreadable: set[str] = set()
        """Why images could not be read; each reason names its image."""
        _check_processes(settings.training.batch_size, accelerator.num_processes)
        self.text_features = self._load_text_features(places)
        self.encoder = build_untrained_encoder(settings).to(accelerator.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head, dim = settings.head, self.encoder.descriptor_dim
            self.heads = [
                build_head(head.kind, dim, group.num_classes, head.scale, head.margin) for group in self.groups
            ]
            self.to_text = self._build_to_text().to(accelerator.device)
        groups = _parameter_groups(self.encoder, [*self.heads, self.to_text], settings)
        self.optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, fused=True))
        self.distributed_encoder = distributed(self.encoder, accelerator)
        self.distributed_to_text = distributed(self.to_text, accelerator)
        self.images = self._open_images(places)

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left, or none that is worth it."""
        training = self.settings.training
        tired = training.patience is not None and self.epochs_since_best >= training.patience
        return self.epoch >= training.epochs or tired

    def run_epoch(self, run: RunFolder, stop: StopRequest) -> dict[str, float]:
        """Train on the group of this epoch, or on what is left of it; returns the means of the loss terms.

        Raises:
            KeyboardInterrupt: stopping was asked for; a checkpoint was written.
        """
        training = self.settings.training
        index = self.epoch % len(self.groups)
        self._move_head(index, self.accelerator.device)
        self.encoder.train()
        bar = progress_bar(
            training.iterations_per_epoch,
            self.accelerator,
            images_per_step=training.batch_size,
            steps_done=self.means.steps,
        )
        with bar:
            terms = self._train_epoch(index, run, stop, bar)
        self._move_head(index, torch.device("cpu"))
        self.epoch += 1
        self.means = Means()
        return terms

    def note_recall(self, recall: float) -> bool:
        """Take in R@1 of a validation; returns whether it is the best so far."""
        is_best = recall > self.best_recall
        self.best_recall = max(recall, self.best_recall)
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        return is_best

    def save(self, run: RunFolder) -> None:
        """Write a checkpoint and remove old ones."""
        if self.accelerator.is_main_process:
            name = f"epoch_{self.epoch:06d}_step_{self.means.steps:06d}"
            save_checkpoint(run.checkpoints, name, self.state_dict())
            prune_checkpoints(run.checkpoints, keep=self.settings.training.keep_checkpoints)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on."""
        return {
            "epoch": self.epoch,
            "means": vars(self.means),
            "best_recall": self.best_recall,
            "epochs_since_best": self.epochs_since_best,
            "unreadable": sorted(self.unreadable),
            "encoder": self.encoder.state_dict(),
            "heads": [head.state_dict() for head in self.heads],
            "to_text": self.to_text.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler_state(self.accelerator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.epoch = state["epoch"]
        self.means = Means(**state["means"])
        self.best_recall = state["best_recall"]
        self.epochs_since_best = state["epochs_since_best"]
        self.unreadable = set(state["unreadable"])
        self.encoder.load_state_dict(state["encoder"])
        for head, head_state in zip(self.heads, state["heads"], strict=True):
            head.load_state_dict(head_state)
        self.to_text.load_state_dict(state["to_text"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_scaler_state(self.accelerator, state["scaler"])

    def _train_epoch(self, index: int, run: RunFolder, stop: StopRequest, bar: tqdm) -> dict[str, float]:
        training, group = self.settings.training, self.groups[index]
        batches = ClassBatches(
            group.offsets,
            batch_size=training.batch_size,
            num_batches=training.iterations_per_epoch,
            seed=self.settings.seed,
            epoch=self.epoch,
            first_batch=self.means.steps,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        # Images in memory need no decoding: handing them over from a worker would cost more than it saves.
        num_workers = 0 if isinstance(self.images, CachedImages) else self.settings.data.num_workers
        loader = build_loader(LabelledImages(self.images, group.rows, group.offsets), batches, num_workers=num_workers)
        head = distributed(self.heads[index], self.accelerator)
        texts = None if self.text_features is None else self.text_features[index].to(self.accelerator.device)
        try:
            return train_epoch(
                self._readable(loader),
                partial(self._step, head, texts),
                self.optimizer,
                self.accelerator,
                bar=bar,
                description=f"stage 2, epoch {self.epoch + 1}/{training.epochs}, group {index + 1}",
                means=self.means,
                stop=stop,
                after_step=partial(self._after_step, run, stop),
                max_gradient_norm=training.max_gradient_norm,
                skip_not_finite=training.skip_not_finite,
            )
        except LossNotFinite as error:
            newest = newest_checkpoint(run.checkpoints)
            last = f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."
            raise LossNotFinite(f"{error} {last}") from None

    def _step(
        self, head: nn.Module, texts: Tensor | None, number: int, batch: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        settings, process = self.settings, self.accelerator.process_index
        self._set_learning_rates(number)
        seed_layers(settings.seed, self.epoch, number, process, 1)  # 1: not the stream of the augmentation
        images, labels = (tensor.to(self.accelerator.device) for tensor in batch)
        augmented = settings.augmentation(images, seeded_generator(settings.seed, self.epoch, number, process))
        descriptors = self.distributed_encoder(self.encoder.normalise(augmented))
        terms = {settings.head.kind: F.cross_entropy(head(descriptors, labels), labels)}
        if texts is not None:
            loss = image_text_cross_entropy(
                self.distributed_to_text(descriptors), texts, labels, settings.text.label_smoothing
            )
            terms["image_text"] = settings.text.weight * loss
        return terms

    def _set_learning_rates(self, number: int) -> None:
        training = self.settings.training
        factor = learning_rate_factor(
            self.epoch * training.iterations_per_epoch + number,
            training.epochs * training.iterations_per_epoch,
            schedule=training.schedule,
            warmup_steps=training.warmup_steps,
        )
        scale_learning_rates(self.optimizer, factor)

    def _after_step(self, run: RunFolder, stop: StopRequest) -> None:
        steps, training = self.means.steps, self.settings.training
        at_end = steps == training.iterations_per_epoch
        if stop.received or (steps % training.checkpoint_every == 0 and not at_end):
            self.save(run)
        if stop.received:
            raise KeyboardInterrupt(
                f"stopped in epoch {self.epoch + 1} after step {steps}: go on with the same command and --resume true."
            )

    def _readable(self, loader: Iterable[Loaded]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a loader, while images that cannot be read are few enough."""
        share = self.settings.data.max_unreadable_share
        for loaded in loader:
            for reason in loaded.unreadable.values():
                raise ValueError(f"No image of a class can be read: {reason}")
            for reason in sorted(set(loaded.replaced.values()) - self.unreadable):
                self.unreadable.add(reason)
                LOGGER.warning("replaced by another image of its class: %s", reason)
                if len(self.unreadable) > share * self.num_images:
                    raise ValueError(
                        f"{len(self.unreadable)} of {self.num_images} images cannot be read, more than "
                        f"data.max_unreadable_share allows: raise it to go on without them. One of them: {reason}"
                    )
            yield loaded.items

    def _move_head(self, index: int, device: torch.device) -> None:
        """Bring a classifier and what the optimizer knows of it to a device; those of idle groups wait on the CPU."""
        self.heads[index].to(device)
        for parameter in self.heads[index].parameters():
            state = self.optimizer.state.get(parameter, {})
            state |= {name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)}

    def _open_images(self, places: TrainingPlaces) -> Dataset:
        images = CatalogueImages(places.catalogue, partial(resize_image, size=self.encoder.image_size))
        data = self.settings.data
        return cache_images(images, num_workers=data.num_workers) if data.cache_images else images

    def _load_text_features(self, places: TrainingPlaces) -> list[Tensor] | None:
        text = self.settings.text
        if text.weight == 0:
            return None
        return load_text_features(text.prompts or self.settings.run / "stage1", places.partition)

    def _build_to_text(self) -> nn.Module:
        """The map from descriptors to text features: nothing where the dimensions agree, else linear, not exported."""
        dim = self.encoder.descriptor_dim
        if self.text_features is None or self.text_features[0].shape[1] == dim:
            return nn.Identity()
        return nn.Linear(dim, self.text_features[0].shape[1])


def _check_processes(batch_size: int, num_processes: int) -> None:
    if batch_size % num_processes:
        raise ValueError(f"training.batch_size {batch_size} must divide among {num_processes} processes.")


def _parameter_groups(encoder: Encoder, training_only: list[nn.Module], settings: Settings) -> list[dict[str, Any]]:
    """The encoder's matrices and kernels, which decay, its other parameters, and one group for each other module.

    A classifier of an idle group gets no gradient, so the optimizer leaves it alone.
    """
    training = settings.training
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    kinds = [
        ([p for p in trained if p.ndim > 1], training.encoder_learning_rate, training.weight_decay),
        ([p for p in trained if p.ndim <= 1], training.encoder_learning_rate, 0.0),
        *((list(module.parameters()), training.head_learning_rate, 0.0) for module in training_only),
    ]
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay} for parameters, rate, decay in kinds
    ]
