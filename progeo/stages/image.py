"""Stage 2: train the image encoder on places and on the texts that stage 1 learned for them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from progeo.config import Settings, plain_values
from progeo.data.datasets import CachedImages, CatalogueImages, LabelledImages
from progeo.data.loaders import build_loader, cache_images, read_batches
from progeo.data.samplers import ClassBatches
from progeo.engine.accelerator import scaler_state, set_scaler_state, start_accelerator
from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.loop import progress_bar, train_epoch
from progeo.engine.randomness import seed_layers, seeded_generator
from progeo.engine.run_folder import RunFolder, open_run
from progeo.export.weights import save_encoder
from progeo.losses import image_text_cross_entropy
from progeo.models.backbones import freeze_layers
from progeo.models.encoder import Encoder, build_encoder
from progeo.models.heads import build_head
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Partition
from progeo.stages.evaluate import TestSet, evaluate_encoder, load_test_set, recalls_in_words
from progeo.stages.places import keep_places, read_training_places
from progeo.stages.prompts import load_text_features

_RECALL_NS = (1, 5, 10, 20)


def train_image_encoder(settings: Settings) -> Path:
    """Run stage 2 and return its folder, with the encoder of the best validation in `best/`."""
    accelerator = start_accelerator(settings.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"Stage 2 runs in one process, got {accelerator.num_processes}: start it without a launcher.")
    places = read_training_places(settings)
    val_set = load_test_set(
        settings.data.val_folder,
        settings.data.database,
        settings.data.queries,
        radius_m=settings.data.positive_radius_m,
    )
    training = ImageTraining(settings, places.partition, accelerator)
    run = open_run(
        settings.run / "stage2",
        plain_values(settings),
        resume=settings.resume,
        may_change=("run", "resume", "data.num_workers", "data.cache_images", "training.epochs"),
        is_main=accelerator.is_main_process,
    )
    keep_places(run, places)
    images = _training_images(settings, places.catalogue, training.encoder.image_size)
    checkpoint = newest_checkpoint(run.checkpoints)
    if checkpoint is not None:
        training.load_state_dict(load_checkpoint(checkpoint))
        LOGGER.info("going on from %s, best val R@1 %.1f", checkpoint, training.best_recall)
    run.keep_metrics(lambda row: checkpoint is not None and row["epoch"] <= training.epoch)
    if checkpoint is None:
        _validate(training, val_set, run, settings, terms={})
    while training.epoch < settings.training.epochs:
        terms = training.run_epoch(images)
        _validate(training, val_set, run, settings, terms=terms)
        save_checkpoint(run.checkpoints, f"epoch_{training.epoch:06d}", training.state_dict())
        prune_checkpoints(run.checkpoints, keep=settings.training.keep_checkpoints)
    LOGGER.info("best val R@1 %.1f, encoder in %s", training.best_recall, run.best)
    return run.path


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
    """All that stage 2 trains, and how far it has come."""

    def __init__(self, settings: Settings, partition: Partition, accelerator: Accelerator) -> None:
        self.settings = settings
        self.partition = partition
        self.accelerator = accelerator
        self.epoch = 0
        """Epochs finished."""
        self.best_recall = -1.0
        self.text_features = self._load_text_features()
        encoder = build_untrained_encoder(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head = settings.head
            heads = [
                build_head(head.kind, encoder.descriptor_dim, group.num_classes, head.scale, head.margin)
                for group in partition.groups
            ]
            to_text = self._build_to_text(encoder.descriptor_dim)
        optimizer = torch.optim.Adam(_parameter_groups(encoder, [*heads, to_text], settings))
        self.encoder = encoder
        self.trained_encoder, self.optimizer, self.to_text, *self.heads = accelerator.prepare(
            encoder, optimizer, to_text, *heads
        )

    def run_epoch(self, images: Dataset) -> dict[str, float]:
        """Train on the group of this epoch; returns the means of the loss terms."""
        training = self.settings.training
        index = self.epoch % len(self.partition.groups)
        group = self.partition.groups[index]
        batches = ClassBatches(
            group.offsets,
            batch_size=training.batch_size,
            num_batches=training.iterations_per_epoch,
            seed=self.settings.seed,
            epoch=self.epoch,
        )
        # Images in memory need no decoding: handing them over from a worker would cost more than it saves.
        num_workers = 0 if isinstance(images, CachedImages) else self.settings.data.num_workers
        loader = build_loader(LabelledImages(images, group.rows, group.labels), batches, num_workers=num_workers)
        self.encoder.train()
        with progress_bar(len(batches), self.accelerator, images_per_step=training.batch_size) as bar:
            terms = train_epoch(
                read_batches(loader),
                partial(self._step, self.heads[index], self._texts_of(index)),
                self.optimizer,
                self.accelerator,
                bar=bar,
                description=f"stage 2, epoch {self.epoch + 1}/{training.epochs}, group {index + 1}",
                max_gradient_norm=training.max_gradient_norm,
            )
        self.epoch += 1
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on."""
        return {
            "epoch": self.epoch,
            "best_recall": self.best_recall,
            "encoder": self.encoder.state_dict(),
            "heads": [self.accelerator.unwrap_model(head).state_dict() for head in self.heads],
            "to_text": self.accelerator.unwrap_model(self.to_text).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler_state(self.accelerator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.epoch = state["epoch"]
        self.best_recall = state["best_recall"]
        self.encoder.load_state_dict(state["encoder"])
        for head, head_state in zip(self.heads, state["heads"], strict=True):
            self.accelerator.unwrap_model(head).load_state_dict(head_state)
        self.accelerator.unwrap_model(self.to_text).load_state_dict(state["to_text"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_scaler_state(self.accelerator, state["scaler"])

    def _step(
        self, head: nn.Module, texts: Tensor | None, step: int, batch: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        images, labels = (tensor.to(self.accelerator.device) for tensor in batch)
        augmented = self.settings.augmentation(images, seeded_generator(self.settings.seed, self.epoch, step))
        seed_layers(self.settings.seed, self.epoch, step, 1)  # 1: not the stream of the augmentation
        descriptors = self.trained_encoder(self.encoder.normalise(augmented))
        terms = {self.settings.head.kind: F.cross_entropy(head(descriptors, labels), labels)}
        if texts is not None:
            text = self.settings.text
            loss = image_text_cross_entropy(self.to_text(descriptors), texts, labels, text.label_smoothing)
            terms["image_text"] = text.weight * loss
        return terms

    def _load_text_features(self) -> list[Tensor] | None:
        text = self.settings.text
        if text.weight == 0:
            return None
        return load_text_features(text.prompts or self.settings.run / "stage1", self.partition)

    def _texts_of(self, index: int) -> Tensor | None:
        return None if self.text_features is None else self.text_features[index].to(self.accelerator.device)

    def _build_to_text(self, descriptor_dim: int) -> nn.Module:
        """The map from descriptors to text features: nothing where the dimensions agree, else linear, not exported."""
        if self.text_features is None or self.text_features[0].shape[1] == descriptor_dim:
            return nn.Identity()
        return nn.Linear(descriptor_dim, self.text_features[0].shape[1])


def _parameter_groups(encoder: Encoder, training_only: list[nn.Module], settings: Settings) -> list[dict[str, Any]]:
    """One group for the encoder and one for each head: those of idle groups get no gradient, so Adam skips them."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "lr": settings.training.encoder_learning_rate}]
    for module in training_only:
        groups.append({"params": list(module.parameters()), "lr": settings.training.head_learning_rate})
    return groups


def _training_images(settings: Settings, catalogue: Catalogue, image_size: tuple[int, int]) -> Dataset:
    images = CatalogueImages(catalogue, partial(resize_image, size=image_size))
    return cache_images(images, num_workers=settings.data.num_workers) if settings.data.cache_images else images


def _validate(
    training: ImageTraining, val_set: TestSet, run: RunFolder, settings: Settings, *, terms: dict[str, float]
) -> None:
    """Take the validation recall, log it, and keep the encoder if it is the best so far."""
    result = evaluate_encoder(
        training.encoder,
        val_set,
        training.accelerator,
        ns=_RECALL_NS,
        image_size=training.encoder.image_size,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
    )
    recalls = {f"val R@{n}": recall for n, recall in result.recalls.items()}
    run.append_metrics({"epoch": training.epoch, **terms, **recalls})
    losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    LOGGER.info(
        "epoch %d: %s%sval %s", training.epoch, losses, ", " if losses else "", recalls_in_words(result.recalls)
    )
    if result.recalls[1] > training.best_recall:
        training.best_recall = result.recalls[1]
        provenance = {"epoch": training.epoch, "settings": plain_values(settings)}
        save_encoder(run.best, training.encoder, provenance=provenance, recalls=recalls)
