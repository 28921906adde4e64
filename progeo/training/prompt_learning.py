"""Prompt learning over all groups: distribution over processes, checkpoints and output files."""

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from progeo.atomic import replacing
from progeo.engine.accelerator import fits_device
from progeo.engine.checkpoint import load_newest_checkpoint, numbers_of, remove_checkpoints
from progeo.engine.log import LOGGER
from progeo.engine.loop import progress_bar
from progeo.engine.run_folder import RunFolder
from progeo.features.extract import ExtractedFeatures
from progeo.file_sets import write_set
from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture
from progeo.models.options import ModelOptions
from progeo.models.state_dicts import weights_digest
from progeo.places.cells import Group, Partition
from progeo.training.options import PromptOptions, TrainerOptions
from progeo.training.prompt_files import DESCRIPTION, PROMPTS, read_group
from progeo.training.prompt_group import GroupImages, GroupTraining
from progeo.training.trainer import Trainer

_TENSORS = ("context", "text_features", "class_ids")


class PromptTraining:
    """Stage 1 over all groups: each process trains its share, and the main process gathers the results."""

    def __init__(
        self,
        prompts: PromptOptions,
        partition: Partition,
        *,
        model: ModelOptions,
        clip: CLIP,
        seed: int,
        run: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self.prompts, self.model, self.seed = prompts, model, seed
        self.partition = partition
        self.clip = clip
        self.run = run
        self.accelerator = accelerator
        self.mine = range(accelerator.process_index, len(partition.groups), accelerator.num_processes)
        self.steps = [0] * len(partition.groups)
        """Steps per epoch, by group."""
        self.steps_of_others = 0
        """Steps that other processes had done at the last check."""
        self.newest = [self._newest(index) for index in range(len(partition.groups))]
        """The checkpoint that each group resumes from; None if the group starts from scratch or has finished."""

    def drop_metrics_of_unfinished_epochs(self) -> None:
        """Drop metrics of epochs that will be trained again; the main process does it before any process trains."""
        if self.accelerator.is_main_process:
            done = [self._done(index)[0] for index in range(len(self.partition.groups))]
            self.run.keep_metrics(lambda row: row["epoch"] <= done[row["group"]])

    def train_groups(self, features: ExtractedFeatures, rows: np.ndarray) -> None:
        """Train this process's groups; the main process then waits for the files of the others.

        Args:
            features: features of all images of the groups.
            rows: the catalogue row of each feature row.
        """
        images = [_readable_images(group, features, rows) for group in self.partition.groups]
        self.steps = [-(-len(feature_rows) // self.prompts.batch_size) for feature_rows, _ in images]
        self.steps_of_others = self._count_steps_of_others()
        bar = progress_bar(
            self.prompts.epochs * sum(self.steps),
            self.accelerator,
            images_per_step=self.prompts.batch_size,
            steps_done=self.steps_of_others + sum(map(self._steps_done, self.mine)),
        )
        with bar:
            for index in self.mine:
                if not self.run.group_file(index).is_file():
                    self._train_group(index, features, *images[index], bar)
                    self.accelerator.free_memory()
                remove_checkpoints(self.run.group_checkpoints(index))
            bar.set_description("stage 1, waiting for other processes")
            while self.accelerator.is_main_process and not self._all_finished():
                time.sleep(1)
                self._follow_others(bar)

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
            "architecture": resolved_architecture(self.model.architecture, configuration_of(self.clip)),
            "weights": self.model.weights,
            "seed": self.seed,
            "vocabulary": weights_digest({"token_embedding": self.clip.token_embedding.weight}),
            "template": self.prompts.template,
            "context_length": self.prompts.context_length,
            "groups": summaries,
        }
        write_set(self.run.path / DESCRIPTION, description, {PROMPTS: partial(save_file, tensors)})
        LOGGER.info("prompts of %d groups written to %s", len(summaries), self.run.path / PROMPTS)

    def _train_group(
        self, index: int, features: ExtractedFeatures, feature_rows: np.ndarray, labels: np.ndarray, bar: tqdm
    ) -> None:
        """Train one group, whose features have these rows, from its newest checkpoint on and write its file."""
        group, name = self.partition.groups[index], self._name(index)
        on_device = fits_device(2 * features.rows.width * len(feature_rows), self.accelerator)
        images = GroupImages(
            features.rows, feature_rows, labels=labels, accelerator=self.accelerator, on_device=on_device
        )
        training = GroupTraining(
            index,
            group.num_classes,
            images=images,
            clip=self.clip,
            prompts=self.prompts,
            seed=self.seed,
            accelerator=self.accelerator,
        )
        trainer = Trainer(
            training,
            TrainerOptions(epochs=self.prompts.epochs, schedule="cosine_epochs", keep_checkpoints=1),
            self.run,
            checkpoints=self.run.group_checkpoints(index),
            seed=self.seed,
            accelerator=self.accelerator,
            bar=bar,
            alone=True,
        )
        if trainer.resume() is not None:
            LOGGER.info("%s: resuming after %d epochs", name, trainer.epoch)
        for _ in trainer.epochs():
            self._follow_others(bar)
        text_features = training.text_features()
        matching = training.matching(text_features)
        summary = {
            "classes": group.num_classes,
            "classes_without_images": group.num_classes - len(np.unique(labels)),
            "images": len(images),
            "loss": trainer.terms["loss"],
            "image_to_text_accuracy": matching.image_to_text,
            "text_to_image_accuracy": matching.text_to_image,
        }
        tensors = {
            "context": training.learner.context.detach().cpu(),
            "text_features": text_features.cpu(),
            "class_ids": torch.from_numpy(group.class_ids),
        }
        with replacing(self.run.group_file(index)) as temporary:
            save_file(tensors, temporary, metadata={"summary": json.dumps(summary)})
        LOGGER.info("%s: %s", name, _in_words(summary))

    def _all_finished(self) -> bool:
        return all(self.run.group_file(index).is_file() for index in range(len(self.steps)))

    def _follow_others(self, bar: tqdm) -> None:
        """Advance the progress bar by the steps that other processes did since the last call."""
        done = self._count_steps_of_others()
        bar.update(done - self.steps_of_others)
        self.steps_of_others = done

    def _count_steps_of_others(self) -> int:
        if len(self.mine) == len(self.steps):
            return 0
        return sum(self.steps[row["group"]] for row in self.run.read_metrics() if row["group"] not in self.mine)

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


def _readable_images(group: Group, features: ExtractedFeatures, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the feature rows of a group's readable images, and the labels of these images."""
    order = np.argsort(rows)
    feature_rows = order[np.searchsorted(rows, group.rows, sorter=order)]
    readable = ~np.isin(feature_rows, features.unreadable)
    return feature_rows[readable], group.labels[readable]


def _in_words(summary: Mapping[str, Any]) -> str:
    empty = summary["classes_without_images"]
    return (
        f"{summary['classes']} classes, {summary['images']} images, loss {summary['loss']:.4f}, top-1 "
        f"image to text {summary['image_to_text_accuracy']:.1f} %, "
        f"text to image {summary['text_to_image_accuracy']:.1f} %"
        f"{f', {empty} classes without an image that can be read: their prompts say nothing' if empty else ''}"
    )
