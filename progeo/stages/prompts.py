"""Stage 1: learn a text prompt for every place, both CLIP encoders frozen."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from open_clip import CLIP
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from progeo.config import Settings, plain_values
from progeo.data.samplers import permuted_batches
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER
from progeo.engine.loop import train_epoch
from progeo.engine.randomness import seeded_generator
from progeo.engine.run_folder import RunFolder, open_run
from progeo.files import read_json, replacing, write_json
from progeo.losses import supervised_contrastive
from progeo.models.clip import load_clip
from progeo.models.prompts import PromptLearner
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import Group, Partition, build_partition, check_same_partition
from progeo.stages.features import cached_features

_PROMPTS = "prompts.safetensors"
_DESCRIPTION = "prompts.json"
_ENCODE_BATCH = 1024


def train_prompts(settings: Settings) -> Path:
    """Run stage 1 and return its folder, with `prompts.safetensors` and `prompts.json` in it.

    Groups are independent of each other: each process trains its own, and one that is finished is not trained again.
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
        may_change=("run", "resume", "data.num_workers", "prompts.feature_cache"),
        is_main=accelerator.is_main_process,
    )
    LOGGER.info("%d images, classes of the groups: %s", len(catalogue), [g.num_classes for g in partition.groups])
    rows = np.unique(np.concatenate([group.rows for group in partition.groups]))
    features = cached_features(
        clip,
        catalogue.take(rows),
        settings.prompts.feature_cache,
        accelerator,
        normalisation=settings.model.normalisation,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
    )
    for index, group in enumerate(partition.groups):
        if index % accelerator.num_processes == accelerator.process_index and not _group_file(run, index).is_file():
            images = torch.from_numpy(features[np.searchsorted(rows, group.rows)])
            _train_group(index, group, images, clip, settings, run, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _gather(run, partition, settings)
    return run.path


def load_text_features(folder: Path, partition: Partition) -> list[Tensor]:
    """Text features (C, E) of each group, as stage 1 left them in `folder`.

    Raises:
        FileNotFoundError: stage 1 has not finished there.
        ValueError: they were learned for other classes; the sentence says what differs.
    """
    if not (folder / _DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"There are no prompts in {folder}: run stage 1 first, name its folder with --text.prompts, "
            f"or train without text with --text.weight 0."
        )
    check_same_partition(read_json(folder / _DESCRIPTION)["partition"], partition, str(folder / _PROMPTS))
    with safe_open(folder / _PROMPTS, framework="pt") as file:
        return [file.get_tensor(f"group_{index}.text_features") for index in range(len(partition.groups))]


def _train_group(
    index: int,
    group: Group,
    images: Tensor,
    clip: CLIP,
    settings: Settings,
    run: RunFolder,
    accelerator: Accelerator,
) -> None:
    """Learn the prompts of one group from its image features (n, E) and write them to the group's own file."""
    prompts = settings.prompts
    learner = PromptLearner(
        clip,
        group.num_classes,
        prompts.template,
        prompts.context_length,
        generator=seeded_generator(settings.seed, index),
    ).to(accelerator.device)
    optimizer = accelerator.prepare(torch.optim.Adam(learner.parameters(), lr=prompts.learning_rate))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, T_max=prompts.epochs)
    labels = torch.from_numpy(group.labels)

    def step(_: int, batch: np.ndarray) -> dict[str, Tensor]:
        image, label = images[batch].float().to(accelerator.device), labels[batch].to(accelerator.device)
        text = learner(label)
        if prompts.normalised:
            image, text = F.normalize(image), F.normalize(text)
        return {
            "image_to_text": supervised_contrastive(image, text, label, label, prompts.temperature),
            "text_to_image": supervised_contrastive(text, image, label, label, prompts.temperature),
        }

    run.keep_metrics(lambda row: row["group"] != index)
    terms: dict[str, float] = {}
    for epoch in range(prompts.epochs):
        batches = permuted_batches(len(group.rows), prompts.batch_size, seed=settings.seed, epoch=epoch)
        terms = train_epoch(
            batches,
            step,
            optimizer,
            accelerator,
            num_batches=len(batches),
            description=f"stage 1, group {index + 1}, epoch {epoch + 1}/{prompts.epochs}",
        )
        scheduler.step()
        run.append_metrics({"group": index, "epoch": epoch + 1, **terms})
    accelerator.free_memory()
    LOGGER.info("group %d: %d classes, loss %.4f", index + 1, group.num_classes, terms["loss"])
    with replacing(_group_file(run, index)) as temporary:
        save_file(
            {
                "context": learner.context.detach().cpu(),
                "text_features": _all_text_features(learner, group.num_classes, accelerator),
                "class_ids": torch.from_numpy(group.class_ids),
            },
            temporary,
        )


@torch.inference_mode()
def _all_text_features(learner: PromptLearner, num_classes: int, accelerator: Accelerator) -> Tensor:
    labels = torch.arange(num_classes, device=accelerator.device)
    return torch.cat([learner(part).float().cpu() for part in labels.split(_ENCODE_BATCH)])


def _group_file(run: RunFolder, index: int) -> Path:
    return run.checkpoints / f"group_{index}.safetensors"


def _gather(run: RunFolder, partition: Partition, settings: Settings) -> None:
    """Put the groups' files together."""
    tensors = {
        f"group_{index}.{name}": tensor
        for index in range(len(partition.groups))
        for name, tensor in load_file(_group_file(run, index)).items()
    }
    with replacing(run.path / _PROMPTS) as temporary:
        save_file(tensors, temporary)
    description: dict[str, Any] = {
        "partition": partition.describe(),
        "architecture": settings.model.architecture,
        "weights": settings.model.weights,
        "template": settings.prompts.template,
        "context_length": settings.prompts.context_length,
    }
    write_json(run.path / _DESCRIPTION, description)
    LOGGER.info("prompts of %d groups written to %s", len(partition.groups), run.path / _PROMPTS)
