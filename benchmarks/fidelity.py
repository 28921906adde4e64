"""Compare what stage 2 and the published loop learn from the same images, steps and starting weights.

Run `python -m benchmarks.fidelity CONFIG ... --file_side 128` with settings of stage 2, such as those in
benchmarks/configs (whose folders are given by `--data.train_folder` and `--validation.folder`). The published loop is
CosPlace's, to which ProGEO's stage 2 adds its text, in a plain implementation: each class gives one random image per
epoch, decoded to floats, jittered and cropped image by image, and Adam trains encoder and classifier. Ours is measured
once with the same settings and once with averaged weights, as in the short configurations. Both are validated alike.
With `--file_side` the images are copied at a smaller size first, as the published augmentation is slow.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.short_trainings import Task, Trained, build_task, parse_arguments, print_head, print_row, train_ours
from progeo.data.decode import read_image
from progeo.image_files import Orientation
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Group
from progeo.training.starting_encoder import build_starting_encoder


def main() -> None:
    """Print a table for each configuration."""
    options, words = parse_arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        for config in options.configs:
            tasks = [build_task(config, options, words, seed=seed, folder=Path(folder)) for seed in options.seeds]
            print_head(config, tasks[0])
            published = [train_published(task) for task in tasks]
            print_row("published loop", *columns(published, 0))
            ours = [train_ours(task, lambda trainer: (trainer.task.model, trainer.model)) for task in tasks]
            print_row("ours, the same settings", *columns(ours, 0))
            if (decay := tasks[0].settings.training.ema_decay) is not None:
                print_row(f"ours, weights averaged ({decay})", *columns(ours, 1))


def columns(trained: Sequence[Trained], encoder: int) -> tuple[list[float], list[float]]:
    """Return the R@1 of one of the encoders of each training, and the seconds per step."""
    return [each.recalls[encoder] for each in trained], [each.seconds_per_step for each in trained]


class RandomImageOfClass(Dataset):
    """One random image of each class, as floats."""

    def __init__(self, catalogue: Catalogue, group: Group, orientation: Orientation) -> None:
        self.paths = [catalogue.path(row) for row in group.rows]
        self.orientation = orientation
        self.of_class = [np.flatnonzero(group.labels == label).tolist() for label in range(group.num_classes)]

    def __len__(self) -> int:
        return len(self.of_class)

    def __getitem__(self, label: int) -> tuple[Tensor, int]:
        image = read_image(self.paths[random.choice(self.of_class[label])], self.orientation)
        return image.float() / 255, label


class CosFace(nn.Module):
    """Cosine logits with an additive margin."""

    def __init__(self, dim: int, num_classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, dim)))
        self.scale, self.margin = scale, margin

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute logits (B, C) of descriptors (B, D)."""
        norms = descriptors.norm(dim=1)[:, None] * self.weight.norm(dim=1)[None]
        cosines = descriptors @ self.weight.T / norms.clamp(min=1e-8)
        one_hot = torch.zeros_like(cosines).scatter_(1, labels[:, None], 1.0)
        return self.scale * (cosines - one_hot * self.margin)


def train_published(task: Task) -> Trained:
    """Train as the published code does, from the same starting encoder as ours."""
    settings, groups, device = task.settings, task.images.partition.groups, task.accelerator.device
    training, jitter = settings.training, settings.augmentation
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    encoder = build_starting_encoder(settings.model, settings.encoder, seed=settings.seed).to(device).train()
    dim, head_options = encoder.descriptor_dim, settings.losses["head"]
    heads = [CosFace(dim, group.num_classes, head_options.scale, head_options.margin).to(device) for group in groups]
    optimizer = torch.optim.Adam(encoder.parameters(), lr=training.encoder_learning_rate)
    head_optimizers = [torch.optim.Adam(head.parameters(), lr=training.head_learning_rate) for head in heads]
    color_jitter = transforms.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    crop = transforms.RandomResizedCrop(list(encoder.image_size), scale=jitter.crop_scale, ratio=jitter.crop_ratio)
    normalize = transforms.Normalize(encoder.spec.mean, encoder.spec.std)
    start = time.perf_counter()
    for epoch in range(training.epochs):
        index = epoch % len(groups)
        images = RandomImageOfClass(task.images.catalogue, groups[index], settings.data.orientation)
        batches = endless_batches(images, training.batch_size, settings.data.num_workers)
        for _ in range(training.iterations_per_epoch):
            pixels, labels = (values.to(device) for values in next(batches))
            pixels = torch.stack([color_jitter(image) for image in pixels])
            pixels = normalize(torch.stack([crop(image) for image in pixels]))
            optimizer.zero_grad()
            head_optimizers[index].zero_grad()
            F.cross_entropy(heads[index](encoder(pixels), labels), labels).backward()
            optimizer.step()
            head_optimizers[index].step()
    seconds = time.perf_counter() - start
    return Trained((task.recall_at_1(encoder),), seconds / (training.epochs * training.iterations_per_epoch))


def endless_batches(images: Dataset, batch_size: int, num_workers: int) -> Iterator[list[Tensor]]:
    """Yield batches of random classes, in which each class comes once before any comes again.

    Raises:
        ValueError: there are fewer classes than images in a batch.
    """
    if len(images) < batch_size:
        raise ValueError(f"training.batch_size must be at most {len(images)}, a group's classes, got {batch_size}.")
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=num_workers, drop_last=True)
    while True:
        yield from loader


if __name__ == "__main__":
    main()
