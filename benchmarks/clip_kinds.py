"""Benchmark stage 1's losses on three kinds of CLIPs of random weights: raw features, and cosines at two temperatures.

Run `python -m benchmarks.clip_kinds toy/city/train` on the training images of `progeo demo --only_city --out toy`. The
scales are those that published weights have: random ones would begin with the temperature 0.07.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn

from progeo.data.decode import read_image
from progeo.engine.accelerator import start_accelerator
from progeo.engine.loop import take_steps
from progeo.engine.schedules import learning_rate_factor, scale_learning_rates
from progeo.features.store import ShardedRows
from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.text_towers.tower import build_text_tower
from progeo.places.cells import Group
from progeo.places.options import CellOptions
from progeo.training.options import PromptOptions
from progeo.training.places import TrainingPlaces, read_training_places
from progeo.training.prompt_group import GroupImages, GroupTraining, held_out_images

SIDE, BATCH_SIZE, HELD_OUT, EPOCHS, SEEDS = 96, 128, 0.2, 30, (0, 1)
VISION = {"image_size": SIDE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 20, "width": 64, "heads": 2, "layers": 2}
KINDS: Mapping[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any], dict[str, Any], float]] = {
    "CLIP": (open_clip.CLIP, {}, {}, {}, 100.0),
    "SigLIP": (
        open_clip.CustomTextCLIP,
        {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 1},
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
        {"init_logit_bias": -13.0},
        117.0,
    ),
    "CoCa": (
        open_clip.CoCa,
        {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        {"embed_cls": True, "output_tokens": True},
        {"multimodal_cfg": {"context_length": 19, "width": 64, "heads": 2, "layers": 1}},
        100.0,
    ),
}
"""Class, settings of the towers and of the whole, and scale of each kind."""
LOSSES: Mapping[str, dict[str, Any]] = {
    "raw": {},
    "cosines, clip": {"normalized": True, "temperature": "clip"},
    "cosines, 0.07": {"normalized": True, "temperature": 0.07},
}


def main() -> None:
    """Print the std of the logits, the loss and the accuracies of trained and held-out images, means over seeds."""
    cells = CellOptions(groups_per_side=1, groups_per_heading=1, min_images_per_class=5, num_groups=1)
    places = read_training_places(Path(sys.argv[1]), cells)
    print(f"{'':24}{'logits':>8}{'loss':>8}{'trained':>9}{'held out':>10}")
    for kind in KINDS:
        per_loss: dict[str, list[list[float]]] = {name: [] for name in LOSSES}
        for seed in SEEDS:
            clip = build_clip(kind, seed)
            with tempfile.TemporaryDirectory() as folder:
                features = image_features(clip, places, Path(folder))
                for name, options in LOSSES.items():
                    prompts = PromptOptions(epochs=EPOCHS, batch_size=BATCH_SIZE, held_out=HELD_OUT, **options)
                    per_loss[name].append(train(clip, features, places.partition.groups[0], prompts, seed=seed))
        for name, results in per_loss.items():
            std, loss, trained, held_out = np.mean(results, axis=0)
            print(f"{kind:8}{name:16}{std:8.2f}{loss:8.2f}{trained:8.1f}%{held_out:9.1f}%", flush=True)


def build_clip(kind: str, seed: int) -> nn.Module:
    """Build a CLIP of random weights with the scale of trained ones."""
    build, vision, text, more, scale = KINDS[kind]
    values = {"embed_dim": 128, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}, **more}
    torch.manual_seed(seed)
    clip = build(**values).eval().requires_grad_(False)
    clip.logit_scale.fill_(np.log(scale))
    clip.configuration = ClipConfiguration(values)
    return clip


@torch.inference_mode()
def image_features(clip: nn.Module, places: TrainingPlaces, folder: Path) -> ShardedRows:
    """Extract the features of all images."""
    catalogue, mean_std = places.catalogue, [torch.tensor(each)[:, None, None] for each in NORMALIZATIONS["clip"]]
    parts = []
    for rows in np.array_split(np.arange(len(catalogue)), -(-len(catalogue) // BATCH_SIZE)):
        images = torch.stack([read_image(catalogue.path(row)) for row in rows.tolist()]).float() / 255
        images = nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        parts.append(clip.encode_image((images - mean_std[0]) / mean_std[1], normalize=False))
    values = torch.cat(parts).numpy().astype(np.float16)
    features = ShardedRows(folder, num_rows=len(values), width=values.shape[1], shard_size=len(values))
    features.write_shard(0, values)
    return features


def train(clip: nn.Module, features: ShardedRows, group: Group, prompts: PromptOptions, *, seed: int) -> list[float]:
    """Train a group.

    Returns:
        Standard deviation of the logits of an image over the texts at the end, mean over images; the loss of the last
        epoch; and the image-to-text accuracies of trained and of held-out images in percent.
    """
    accelerator = start_accelerator("no")
    held_out = held_out_images(group.labels, prompts.held_out, seed=seed, group=0)
    images, unseen = (
        GroupImages(features, group.rows[chosen], labels=group.labels[chosen], accelerator=accelerator, on_device=True)
        for chosen in (~held_out, held_out)
    )
    training = GroupTraining(
        0,
        group.num_classes,
        images=images,
        unseen=unseen,
        tower=build_text_tower(clip),
        prompts=prompts,
        seed=seed,
        accelerator=accelerator,
    )
    steps, losses = training.steps_per_epoch, []
    for epoch in range(prompts.epochs):
        factor = learning_rate_factor(
            epoch * steps,
            prompts.epochs * steps,
            schedule="cosine_epochs",
            warmup_steps=0,
            steps_per_epoch=steps,
            decayed=1.0,
        )
        scale_learning_rates(training.optimizer, factor)
        batches = training.batches(epoch, first_step=0)
        taken = take_steps(batches, training.losses, training.optimizer, accelerator, alone=True)
        losses = [step.result.numbers["loss"] for step in taken]
    texts = training.text_features()
    found = training.accuracies(texts)
    compared = images.batch(np.arange(len(images)))[0], texts
    if prompts.normalized:
        compared = tuple(nn.functional.normalize(each) for each in compared)
    std = (compared[0] @ compared[1].T / training.temperature).std(dim=1).mean().item()
    return [std, float(np.mean(losses)), found["image_to_text_accuracy"], found["held_out_image_to_text_accuracy"]]


if __name__ == "__main__":
    main()
