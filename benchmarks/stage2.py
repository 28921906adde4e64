"""Benchmark stage 2 against the published loop, on the same images and the same model.

Run `python -m benchmarks.stage2`. A ResNet18 frozen up to layer2 with a GeM and a CosFace head, at 224 px, on JPEGs of
512 px. The published loop jitters colors at 512 px, then crops and resizes; ours crops and resizes while decoding, then
jitters. The published loop is therefore also timed with images that are resized first. Decoding and augmentation: on a
CPU one thread and process CPU time, on a GPU wall time; the step and the whole: wall time on all cores, nothing
overlapping. All alternate; the minimum counts. Further rows are for NetVLAD, mined tuples and teachers, see
benchmarks/tuples.py, which also runs alone.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import resnet18

from benchmarks.images import write_images
from benchmarks.timing import clock_of_device, clock_of_one_core, min_seconds
from benchmarks.tuples import print_comparisons
from progeo.data.augmentation import build_crop, color_plan, draw_changes, jitter_colors
from progeo.data.datasets import CatalogueImages, LabeledImages
from progeo.data.loaders import build_loader, read_batches
from progeo.data.options import Augmentation
from progeo.engine.accelerator import start_accelerator
from progeo.engine.transfer import to_device
from progeo.models.aggregation import GeM
from progeo.models.heads import build_head
from progeo.models.preprocessing import normalize_images
from progeo.places.catalogue import Catalogue, read_catalogue

IMAGE_SIDE, INPUT_SIDE, BATCH_SIZE = 512, 224, 32
DESCRIPTOR_DIM, NUM_CLASSES = 512, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_LEARNING_RATE, HEAD_LEARNING_RATE = 1e-5, 1e-2


@dataclass(frozen=True)
class Loop:
    """The parts of a training loop; each takes the result of the one before it."""

    decode: Callable[[], Tensor]
    augment: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], None]

    def run(self) -> None:
        """Train on one batch."""
        self.step(self.augment(self.decode()))


def main() -> None:
    """Print the results."""
    with tempfile.TemporaryDirectory() as folder:
        print(compare_loops(Path(folder)))
    print_comparisons()


def compare_loops(folder: Path) -> str:
    """Format milliseconds per image of every part and of the whole, and the ratios of the published loop to ours."""
    write_images(folder, BATCH_SIZE, IMAGE_SIDE)
    catalogue = read_catalogue(folder)
    accelerator = start_accelerator("no")
    paths = [catalogue.path(row) for row in range(BATCH_SIZE)]
    loops = {
        "published": plain_loop(paths, [], accelerator.device),
        "published, resized": plain_loop(paths, [transforms.Resize((INPUT_SIDE, INPUT_SIDE))], accelerator.device),
        "ours": our_loop(catalogue, accelerator.device),
    }
    decoded = [loop.decode() for loop in loops.values()]
    augmented = [loop.augment(images) for loop, images in zip(loops.values(), decoded, strict=True)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = clock_of_one_core(accelerator)
    decode = min_seconds([loop.decode for loop in loops.values()], clock, rounds=4)
    augment = min_seconds(
        [partial(loop.augment, images) for loop, images in zip(loops.values(), decoded, strict=True)], clock, rounds=4
    )
    torch.set_num_threads(threads)
    step = min_seconds(
        [partial(loop.step, images) for loop, images in zip(loops.values(), augmented, strict=True)],
        clock_of_device,
        rounds=3,
    )
    whole = min_seconds([loop.run for loop in loops.values()], clock_of_device, rounds=3)
    both = [sum(pair) for pair in zip(decode, augment, strict=True)]
    rows = {
        "decode": decode,
        "augment": augment,
        "decode and augment": both,
        "step": step,
        "whole": whole,
    }
    lines = [f"{'ms an image':20}" + "".join(f"{name:>20}" for name in loops) + f"{'ratios':>16}"]
    for name, seconds in rows.items():
        figures = "".join(f"{1e3 * value / BATCH_SIZE:20.2f}" for value in seconds)
        lines.append(f"{name:20}{figures}{seconds[0] / seconds[2]:10.2f}{seconds[1] / seconds[2]:6.2f}")
    speeds = "".join(f"{BATCH_SIZE / value:20.1f}" for value in whole)
    return "\n".join([*lines, f"{'whole, images/s':20}{speeds}"])


def plain_loop(paths: Sequence[Path], resizing: Sequence[nn.Module], device: torch.device) -> Loop:
    """Build the published loop: decode to floats, jitter and crop image by image, train with plain Adam."""
    to_tensor = transforms.Compose([*resizing, transforms.ToTensor()])
    jitter = transforms.ColorJitter(brightness=0.7, contrast=0.7, saturation=0.7, hue=0.5)
    crop = transforms.RandomResizedCrop([INPUT_SIDE, INPUT_SIDE], scale=(0.5, 1))
    normalize = transforms.Normalize(MEAN, STD)

    def decode() -> Tensor:
        return torch.stack([to_tensor(Image.open(path).convert("RGB")) for path in paths])

    def augment(images: Tensor) -> Tensor:
        jittered = torch.stack([jitter(image) for image in images.to(device)])
        return normalize(torch.stack([crop(image) for image in jittered]))

    return Loop(decode, augment, build_step(device, torch.contiguous_format, fused=False))


def our_loop(catalogue: Catalogue, device: torch.device) -> Loop:
    """Build our loop: decode, crop and resize to uint8, jitter in batches, train in channels_last with fused Adam."""
    augmentation, generator = Augmentation(), torch.Generator().manual_seed(0)
    rows, crop = np.arange(BATCH_SIZE), build_crop(augmentation, (INPUT_SIDE, INPUT_SIDE))
    images = LabeledImages(CatalogueImages(catalogue), rows, np.arange(BATCH_SIZE + 1), crop)
    draws = draw_changes(augmentation, BATCH_SIZE, generator).crops.numpy()
    loader = build_loader(images, [list(zip(rows.tolist(), draws, strict=True))], num_workers=0)
    mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))

    def decode() -> Tensor:
        pixels, *_ = next(read_batches(loader))
        return pixels

    def jittered(pixels: Tensor) -> Tensor:
        plan = color_plan(draw_changes(augmentation, len(pixels), generator))
        pixels, plan = to_device((pixels, plan), device)
        return jitter_colors(pixels, plan, partial(normalize_images, mean=mean, std=std))

    return Loop(decode, jittered, build_step(device, torch.channels_last, fused=True))


def build_step(device: torch.device, memory_format: torch.memory_format, *, fused: bool) -> Callable[[Tensor], None]:
    """Build the training step on images (B, 3, H, W) of as many classes."""
    torch.manual_seed(0)
    backbone = nn.Sequential(*list(resnet18().children())[:-2])
    backbone[:6].requires_grad_(False)  # all layers before layer3
    encoder = nn.Sequential(backbone, GeM(512, DESCRIPTOR_DIM)).to(device, memory_format=memory_format)
    head = build_head("cosface", DESCRIPTOR_DIM, NUM_CLASSES, scale=30.0, margin=0.4).to(device)
    optimizer = torch.optim.Adam(
        [
            {"params": [p for p in encoder.parameters() if p.requires_grad], "lr": ENCODER_LEARNING_RATE},
            {"params": head.parameters(), "lr": HEAD_LEARNING_RATE},
        ],
        fused=fused,
    )
    labels = torch.arange(BATCH_SIZE, device=device)

    def step(images: Tensor) -> None:
        optimizer.zero_grad()
        logits = head(encoder(images.to(memory_format=memory_format)), labels)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
