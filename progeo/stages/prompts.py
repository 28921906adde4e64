"""Stage 1: learn a text prompt for every place, both CLIP encoders frozen."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP
from safetensors.torch import safe_open, save_file
from torch import Tensor
from tqdm import tqdm

from progeo.config import Settings, plain_values
from progeo.engine.accelerator import fits_device, start_accelerator
from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.loop import progress_bar
from progeo.engine.run_folder import RunFolder, open_run
from progeo.files import read_json, replacing, write_json
from progeo.models.clip import load_clip, weights_digest
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import Group, Partition, build_partition, check_same_partition
from progeo.stages.features import ImageFeatures, cached_features
from progeo.stages.prompt_group import GroupImages, GroupTraining

PROMPTS = "prompts.safetensors"
DESCRIPTION = "prompts.json"
_TENSORS = ("context", "text_features", "class_ids")


def train_prompts(settings: Settings) -> Path:
    """Run stage 1 and return its folder, with `prompts.safetensors` and `prompts.json` in it.

    Groups are independent of each other: each process trains its own. A run that was stopped goes on with the last
    finished epoch of each group.
    """
    accelerator = start_accelerator(settings.mixed_precision)
    catalogue = read_catalogue(settings.data.train_folder)
    partition = build_partition(catalogue, **vars(settings.cells))
    clip = load_clip(
        settings.model.architecture,
        settings.model.weights,
        settings.prompts.image_size,
        align_corners=settings.model.align_corners,
        seed=settings.seed,
    )
    clip.requires_grad_(False).to(accelerator.device)
    run = open_run(
        settings.run / "stage1",
        plain_values(settings),
        resume=settings.resume,
        may_change=("run", "resume", "data.num_workers", "data.max_unreadable_share", "prompts.feature_cache"),
        is_main=accelerator.is_main_process,
    )
    LOGGER.info("%d images, classes of the groups: %s", len(catalogue), [g.num_classes for g in partition.groups])
    epochs_done = [_epochs_done(run, index, settings.prompts.epochs) for index in range(len(partition.groups))]
    if accelerator.is_main_process:
        run.keep_metrics(lambda row: row["epoch"] <= epochs_done[row["group"]])
    rows = np.unique(np.concatenate([group.rows for group in partition.groups]))
    features = cached_features(
        clip,
        catalogue.take(rows),
        settings.prompts.feature_cache,
        accelerator,
        normalisation=settings.model.normalisation,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
        max_unreadable_share=settings.data.max_unreadable_share,
    )
    _train_groups(partition, rows, features, clip, settings, run, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        summaries = _gather(run, partition, clip, settings)
        for index in sorted(set(range(len(summaries))) - set(_share(partition, accelerator))):
            LOGGER.info("%s: %s", _name(index, partition), _in_words(summaries[index]))
        LOGGER.info("prompts of %d groups written to %s", len(partition.groups), run.path / PROMPTS)
    return run.path


def load_text_features(folder: Path, partition: Partition) -> list[Tensor]:
    """Text features (C, E) of each group, as stage 1 left them in `folder`.

    Raises:
        FileNotFoundError: stage 1 has not finished there.
        ValueError: they were learned for other classes; the sentence says what differs.
    """
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"There are no prompts in {folder}: run stage 1 first, name its folder with --text.prompts, "
            f"or train without text with --text.weight 0."
        )
    check_same_partition(read_json(folder / DESCRIPTION)["partition"], partition, str(folder / PROMPTS))
    with safe_open(folder / PROMPTS, framework="pt") as file:
        return [file.get_tensor(f"group_{index}.text_features") for index in range(len(partition.groups))]


def _train_groups(
    partition: Partition,
    rows: np.ndarray,
    features: ImageFeatures,
    clip: CLIP,
    settings: Settings,
    run: RunFolder,
    accelerator: Accelerator,
) -> None:
    """Train this process's share of the groups; `rows` are the rows of the catalogue that have features."""
    mine = _share(partition, accelerator)
    images = {index: _readable_images(partition.groups[index], rows, features) for index in mine}
    prompts = settings.prompts
    steps = {index: -(-len(images[index][0]) // prompts.batch_size) for index in mine}
    bar = progress_bar(
        prompts.epochs * sum(steps.values()),
        accelerator,
        images_per_step=prompts.batch_size,
        steps_done=sum(steps[index] * _epochs_done(run, index, prompts.epochs) for index in mine),
    )
    with bar:
        for index in mine:
            if not _group_file(run, index).is_file():
                places, labels = images[index]
                on_device = fits_device(2 * features.rows.width * len(places), accelerator)
                group_images = GroupImages(features.rows, places, labels, accelerator, on_device=on_device)
                num_classes = partition.groups[index].num_classes
                training = GroupTraining(index, num_classes, group_images, clip, settings, accelerator)
                _train_group(training, partition.groups[index], run, bar, _name(index, partition))
                accelerator.free_memory()
            shutil.rmtree(_group_checkpoints(run, index), ignore_errors=True)


def _train_group(training: GroupTraining, group: Group, run: RunFolder, bar: tqdm, name: str) -> None:
    """Train one group from its newest checkpoint on and write its prompts to its own file."""
    checkpoints = _group_checkpoints(run, training.index)
    newest = newest_checkpoint(checkpoints)
    if newest is not None:
        training.load_state_dict(load_checkpoint(newest))
        LOGGER.info("%s: going on after epoch %d", name, training.epoch)
    epochs = training.prompts.epochs
    while training.epoch < epochs:
        training.run_epoch(bar, f"stage 1, {name}, epoch {training.epoch + 1}/{epochs}")
        run.append_metrics({"group": training.index, "epoch": training.epoch, **training.terms})
        save_checkpoint(checkpoints, f"epoch_{training.epoch:06d}", training.state_dict())
        prune_checkpoints(checkpoints, keep=1)
    text_features = training.text_features()
    matching = training.matching(text_features)
    summary = {
        "classes": group.num_classes,
        "images": len(training.images),
        "loss": training.terms["loss"],
        "image_to_text_accuracy": matching.image_to_text,
        "text_to_image_accuracy": matching.text_to_image,
    }
    with replacing(_group_file(run, training.index)) as temporary:
        tensors = {
            "context": training.learner.context.detach().cpu(),
            "text_features": text_features.cpu(),
            "class_ids": torch.from_numpy(group.class_ids),
        }
        save_file(tensors, temporary, metadata={"summary": json.dumps(summary)})
    LOGGER.info("%s: %s", name, _in_words(summary))


def _share(partition: Partition, accelerator: Accelerator) -> range:
    """The groups that this process trains."""
    return range(accelerator.process_index, len(partition.groups), accelerator.num_processes)


def _name(index: int, partition: Partition) -> str:
    return f"group {index + 1}/{len(partition.groups)}"


def _readable_images(group: Group, rows: np.ndarray, features: ImageFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Where the features of a group's readable images lie, and the labels of these images."""
    places = np.searchsorted(rows, group.rows)
    readable = ~np.isin(places, features.unreadable)
    labels = group.labels[readable]
    empty = group.num_classes - len(np.unique(labels))
    if empty:
        LOGGER.warning("%d of %d classes have no readable image: their prompts say nothing", empty, group.num_classes)
    return places[readable], labels


def _group_file(run: RunFolder, index: int) -> Path:
    return run.checkpoints / f"group_{index}.safetensors"


def _group_checkpoints(run: RunFolder, index: int) -> Path:
    return run.checkpoints / f"group_{index}"


def _epochs_done(run: RunFolder, index: int, epochs: int) -> int:
    """How many epochs of a group need not be trained again."""
    if _group_file(run, index).is_file():
        return epochs
    newest = newest_checkpoint(_group_checkpoints(run, index))
    return 0 if newest is None else int(newest.name.removeprefix("epoch_"))


def _gather(run: RunFolder, partition: Partition, clip: CLIP, settings: Settings) -> list[dict[str, Any]]:
    """Put the groups' files together; returns their summaries."""
    tensors: dict[str, Tensor] = {}
    summaries = []
    for index in range(len(partition.groups)):
        with safe_open(_group_file(run, index), framework="pt") as file:
            summaries.append(json.loads(file.metadata()["summary"]))
            tensors |= {f"group_{index}.{name}": file.get_tensor(name) for name in _TENSORS}
    with replacing(run.path / PROMPTS) as temporary:
        save_file(tensors, temporary)
    description: dict[str, Any] = {
        "partition": partition.describe(),
        "architecture": settings.model.architecture,
        "weights": settings.model.weights,
        "seed": settings.seed,
        "vocabulary": weights_digest({"token_embedding": clip.token_embedding.weight}),
        "template": settings.prompts.template,
        "context_length": settings.prompts.context_length,
        "groups": summaries,
    }
    write_json(run.path / DESCRIPTION, description)
    return summaries


def _in_words(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['classes']} classes, {summary['images']} images, loss {summary['loss']:.4f}, top-1 "
        f"image to text {summary['image_to_text_accuracy']:.1f} %, "
        f"text to image {summary['text_to_image_accuracy']:.1f} %"
    )
