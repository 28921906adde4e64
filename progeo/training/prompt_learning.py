"""Prompt learning over all groups: distribution over processes, checkpoints and output files."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from progeo.atomic import replacing
from progeo.engine.accelerator import fits_device
from progeo.engine.checkpoint import checkpoint_bytes, load_newest_checkpoint, numbers_of, remove_checkpoints
from progeo.engine.dry_run import Phase
from progeo.engine.log import LOGGER
from progeo.engine.loop import training_progress
from progeo.engine.run_folder import RunFolder, is_done, is_of_steps
from progeo.features.extract import ExtractedFeatures
from progeo.features.store import Ones, Rows, ShardedRows
from progeo.file_sets import write_set
from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture
from progeo.models.options import ModelOptions
from progeo.models.state_dicts import weights_digest
from progeo.models.text_towers.tower import TextTower
from progeo.places.cells import Group, Partition
from progeo.printable import counted
from progeo.progress import Progress
from progeo.training.class_words import ClassWords
from progeo.training.options import PromptOptions, TrainerOptions
from progeo.training.prompt_files import DESCRIPTION, PROMPTS, read_group
from progeo.training.prompt_group import GroupImages, GroupTraining, held_out_images
from progeo.training.timing import seconds_per_step
from progeo.training.trainer import Trainer

_TENSORS = ("context", "text_features", "class_ids")


class PromptTraining:
    """Stage 1 over all groups: each process trains its share, and the main process gathers the results."""

    def __init__(
        self,
        prompts: PromptOptions,
        partition: Partition,
        *,
        words: ClassWords,
        model: ModelOptions,
        tower: TextTower,
        seed: int,
        run: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self.prompts, self.model, self.seed = prompts, model, seed
        self.partition, self.words = partition, words
        self.tower = tower
        self.run = run
        self.accelerator = accelerator
        self.mine = range(accelerator.process_index, len(partition.groups), accelerator.num_processes)
        self.steps = [0] * len(partition.groups)
        """Steps per epoch, by group."""
        self.steps_of_others = 0
        """Steps that other processes had done at the last check."""
        self.newest = [self._newest(index) for index in range(len(partition.groups))]
        """The checkpoint that each group resumes from; None if the group starts from scratch or has finished."""

    def drop_metrics_of_unfinished_steps(self) -> None:
        """Drop metrics of steps that will be taken again; the main process does it before any process trains."""
        if self.accelerator.is_main_process:
            done = [self._done(index) for index in range(len(self.partition.groups))]
            self.run.keep_metrics(lambda row: is_done(row, *done[row["group"]]))

    def train_groups(self, features: ExtractedFeatures, rows: np.ndarray) -> None:
        """Train this process's groups; the main process then waits for the files of the others.

        Args:
            features: features of all images of the groups.
            rows: the catalogue row of each feature row.
        """
        images, counts = self._plan(features.unreadable, rows)
        self.steps_of_others = self._count_steps_of_others()
        bar = training_progress(
            self.prompts.epochs * sum(self.steps),
            self.accelerator,
            images_per_step=sum(counts) / sum(self.steps),
            steps_done=self.steps_of_others + sum(map(self._steps_done, self.mine)),
        )
        with bar:
            for index in self.mine:
                if not self.run.group_file(index).is_file():
                    self._train_group(index, features.rows, images[index], bar)
                    self.accelerator.free_memory()
                remove_checkpoints(self.run.group_checkpoints(index))
            bar.describe("stage 1, waiting for other processes")
            while self.accelerator.is_main_process and not self._all_finished():
                time.sleep(1)
                self._follow_others(bar)

    def dry_run(self, width: int, rows: np.ndarray) -> tuple[Phase, int]:
        """Estimate the steps that are left, and the bytes of all files, from some steps of the largest group.

        Args:
            width: dimension E of features, in whose place are ones.
            rows: the catalogue row of each feature row.
        """
        images, counts = self._plan(np.empty(0, np.int64), rows)
        largest = int(np.argmax(counts))
        task = self._training(largest, Ones(len(rows), width), images[largest])
        seconds = seconds_per_step(task, self._options, self.accelerator, alone=True)
        done = sum(map(self._steps_done, range(len(self.steps))))
        left = self.prompts.epochs * sum(self.steps) - done
        seconds = left * seconds / min(self.accelerator.num_processes, len(self.steps))
        learned = checkpoint_bytes([task.state_dict(), task.text_features()]) / task.num_classes
        classes = sum(group.num_classes for group in self.partition.groups)
        # The vectors of each group are in its file and in that of all; checkpoints are of one group at a time.
        checkpoints = 2 * checkpoint_bytes([task.state_dict(), task.optimizer.state_dict()])
        return Phase("prompts", left, "steps", seconds), round(2 * classes * learned) + checkpoints

    def _plan(self, unreadable: np.ndarray, rows: np.ndarray) -> tuple[list["_Images"], list[int]]:
        """Find the images of each group, and their numbers without those that are held out; count its steps."""
        images = [self._images(index, unreadable, rows) for index in range(len(self.partition.groups))]
        counts = [int((~each.held_out).sum()) for each in images]
        self.steps = [-(-count // self.prompts.batch_size) for count in counts]
        return images, counts

    @property
    def _options(self) -> TrainerOptions:
        return TrainerOptions(
            epochs=self.prompts.epochs,
            schedule="cosine_epochs",
            keep_checkpoints=1,
            patience=self.prompts.patience,
            log_every=self.prompts.log_every,
            tf32=False,
        )

    def gather(self) -> None:
        """Merge the files of all groups into one, and log the results of groups that other processes trained."""
        tensors: dict[str, Tensor] = {}
        summaries = []
        for index in range(len(self.partition.groups)):
            values, summary = read_group(self.run.group_file(index), _TENSORS)
            tensors |= {f"group_{index}.{name}": value for name, value in zip(_TENSORS, values, strict=True)}
            summaries.append(summary)
            if index not in self.mine:
                LOGGER.info("%s: %s", self._name(index), _in_words(summaries[index]))
        description: dict[str, Any] = {
            "partition": self.partition.describe(),
            "architecture": resolved_architecture(self.model.architecture, configuration_of(self.tower.clip)),
            "configuration": configuration_of(self.tower.clip).to_json(),
            "weights": self.model.weights,
            "seed": self.seed,
            "vocabulary": weights_digest({"token_embedding": self.tower.token_embedding.weight}),
            "logit_scale": self.tower.logit_scale,
            "logit_bias": self.tower.logit_bias,
            "template": self.prompts.template,
            "context_length": self.prompts.context_length,
            "initial_words": self.prompts.initial_words,
            "shared_context": self.prompts.shared_context,
            "groups": summaries,
        }
        if self.prompts.class_names is not None:
            description["class_names"] = str(self.prompts.class_names)
            description["class_names_column"] = self.prompts.class_names_column
            description["class_token_position"] = self.prompts.class_token_position or "end"
            description["class_words"] = self.words
        write_set(self.run.path / DESCRIPTION, description, {PROMPTS: partial(save_file, tensors)})
        LOGGER.info("prompts of %s written to %s", counted(len(summaries), "group"), self.run.path / PROMPTS)

    def _images(self, index: int, unreadable: np.ndarray, rows: np.ndarray) -> "_Images":
        """Find the readable images of a group and draw those that are held out.

        Raises:
            ValueError: images are to be held out, but no class has two.
        """
        feature_rows, labels = _readable_images(self.partition.groups[index], unreadable, rows)
        held_out = held_out_images(labels, self.prompts.held_out, seed=self.seed, group=index)
        if self.prompts.held_out and not held_out.any():
            raise ValueError(
                f"No image of {self._name(index)} can be held out, as each class keeps one and none has two: set "
                f"`prompts.held_out` 0, or use larger cells."
            )
        return _Images(feature_rows, labels, held_out)

    def _train_group(self, index: int, features: ShardedRows, images: "_Images", bar: Progress) -> None:
        """Train one group from its newest checkpoint on and write its file."""
        name, training = self._name(index), self._training(index, features, images)
        trainer = Trainer(
            training,
            self._options,
            self.run,
            checkpoints=self.run.group_checkpoints(index),
            checkpoint_minutes=self.prompts.checkpoint_minutes,
            seed=self.seed,
            accelerator=self.accelerator,
            bar=bar,
            alone=True,
        )
        if trainer.resume() is not None:
            LOGGER.info("%s: resuming after %d epochs", name, trainer.epoch)
        for _ in trainer.epochs():
            self._follow_others(bar)
        bar.update((self.prompts.epochs - trainer.epoch) * training.steps_per_epoch)  # after an early stop
        training.restore_kept()
        text_features = training.text_features()
        summary: dict[str, Any] = {
            "classes": training.num_classes,
            "classes_without_images": training.num_classes - len(np.unique(images.labels)),
            "images": len(training.images),
            **({} if training.unseen is None else {"held_out_images": len(training.unseen)}),
            "loss": trainer.terms["loss"],
            **training.accuracies(text_features),
        }
        if training.kept is not None:
            summary |= {"loss": training.kept["loss"], "epochs": trainer.epoch, "kept_epoch": training.kept["epoch"]}
        tensors = {
            "context": training.learner.context.detach().cpu(),
            "text_features": text_features.cpu(),
            "class_ids": torch.from_numpy(self.partition.groups[index].class_ids),
        }
        with replacing(self.run.group_file(index)) as temporary:
            save_file(tensors, temporary, metadata={"summary": json.dumps(summary)})
        LOGGER.info("%s: %s", name, _in_words(summary))

    def _training(self, index: int, features: Rows, images: "_Images") -> GroupTraining:
        """Build the training of a group from its images."""
        on_device = fits_device(2 * features.width * len(images.labels), self.accelerator)
        trained, unseen = (
            GroupImages(
                features,
                images.feature_rows[chosen],
                labels=images.labels[chosen],
                accelerator=self.accelerator,
                on_device=on_device,
            )
            for chosen in (~images.held_out, images.held_out)
        )
        return GroupTraining(
            index,
            self.partition.groups[index].num_classes,
            images=trained,
            unseen=unseen if len(unseen) else None,
            title=f"{self._name(index)}, ",
            words=self.words[index],
            tower=self.tower,
            prompts=self.prompts,
            seed=self.seed,
            accelerator=self.accelerator,
        )

    def _all_finished(self) -> bool:
        return all(self.run.group_file(index).is_file() for index in range(len(self.steps)))

    def _follow_others(self, bar: Progress) -> None:
        """Advance the progress by the steps that other processes did since the last call."""
        done = self._count_steps_of_others()
        bar.update(done - self.steps_of_others)
        self.steps_of_others = done

    def _count_steps_of_others(self) -> int:
        if len(self.mine) == len(self.steps):
            return 0
        others = [index for index in range(len(self.steps)) if index not in self.mine]
        finished = [index for index in others if self.run.group_file(index).is_file()]  # maybe after fewer epochs
        unfinished = {*others}.difference(finished)
        epochs = [
            row["group"] for row in self.run.read_metrics() if not is_of_steps(row) and row["group"] in unfinished
        ]
        return sum(map(self._steps_done, finished)) + sum(self.steps[index] for index in epochs)

    def _done(self, index: int) -> tuple[int, int]:
        """Return the number of epochs of a group, and of steps of the next, that need not be trained again."""
        if self.run.group_file(index).is_file():
            return self.prompts.epochs, 0
        newest = self.newest[index]
        return (0, 0) if newest is None else numbers_of(newest)

    def _steps_done(self, index: int) -> int:
        epochs, steps = self._done(index)
        return self.steps[index] * epochs + steps

    def _newest(self, index: int) -> Path | None:
        if self.run.group_file(index).is_file():
            return None
        found = load_newest_checkpoint(self.run.group_checkpoints(index))
        return None if found is None else found[0]

    def _name(self, index: int) -> str:
        return f"group {index + 1}/{len(self.partition.groups)}"


@dataclass(frozen=True)
class _Images:
    """The readable images of a group."""

    feature_rows: np.ndarray
    """Their rows in the features, int64 (n,)."""
    labels: np.ndarray
    """Their class labels, int64 (n,)."""
    held_out: np.ndarray
    """Whether each is held out of training, bool (n,)."""


def _readable_images(group: Group, unreadable: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the feature rows of a group's readable images, and the labels of these images."""
    order = np.argsort(rows)
    feature_rows = order[np.searchsorted(rows, group.rows, sorter=order)]
    readable = ~np.isin(feature_rows, unreadable)
    return feature_rows[readable], group.labels[readable]


def _in_words(summary: Mapping[str, Any]) -> str:
    words = (
        f"{summary['classes']} classes, {summary['images']} images, loss {summary['loss']:.4f}, top-1 "
        f"image to text {summary['image_to_text_accuracy']:.1f} %, "
        f"text to image {summary['text_to_image_accuracy']:.1f} %"
    )
    if "held_out_images" in summary:
        words += (
            f"; of {summary['held_out_images']} held-out images image to text "
            f"{summary['held_out_image_to_text_accuracy']:.1f} %, "
            f"text to image {summary['held_out_text_to_image_accuracy']:.1f} %"
        )
    if "kept_epoch" in summary:
        words += f"; vectors of epoch {summary['kept_epoch']} of {summary['epochs']}"
    if empty := summary["classes_without_images"]:
        words += f", {empty} classes without an image that can be read: their prompts say nothing"
    return words
