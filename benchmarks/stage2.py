"""Benchmark stage 2 against two loops without progeo (benchmarks/plain_loops.py): the published one, and an expert's.

Run `python -m benchmarks.stage2`. A ResNet-18 frozen up to layer2 with GeM, and a CLIP ViT-B/32 whose first half is
frozen, at 224 px with CosFace over 1,000 classes, on JPEGs of 512 px; each in float32 and bfloat16. Ours is the code of
the program: its batches, its step, its epoch. All loops alternate; the minimum counts.

Parts: without worker processes, on a CPU one thread and process CPU time, on a GPU wall time. Ours crops and resizes
while it decodes and jitters 224 px; the published loop jitters 512 px, then crops and resizes: compare "decode and
augment". The share of the matrix rate is that of a large matrix product of the same precision on the same threads.
Whole: an epoch with worker processes on all cores, their start included; wall time, and on a CPU also the CPU time of
all processes, which other programs on the machine disturb less.
"""

import argparse
import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.images import write_images
from benchmarks.plain_loops import ExpertLoop, GeMResNet18, Loop, PlainLoop, PublishedLoop, expert_vit, published_vit
from benchmarks.short_trainings import Task, parse_settings, start_training
from benchmarks.timing import clock_of_device, clock_of_one_core, min_seconds
from progeo.commands.train_encoder import read_training_images
from progeo.engine.accelerator import choose_processor, start_accelerator
from progeo.engine.loop import take_steps
from progeo.engine.options import Precision
from progeo.engine.stopping import StopRequest
from progeo.training.batches import MicroBatch
from progeo.training.validation import build_validation

NUM_CLASSES, NUM_FILES = 1000, 64
IMAGE_SIDE, INPUT_SIDE, BATCH_SIZE = 512, 224, 32
PRECISIONS: tuple[Precision, ...] = ("no", "bf16")


@dataclass(frozen=True)
class Model:
    """A network: how the two plain loops build it, and our configuration of it."""

    published: Callable[[], nn.Module]
    expert: Callable[[], nn.Module]
    config: str


MODELS = {
    "ResNet-18": Model(GeMResNet18, GeMResNet18, "cosplace_resnet18"),
    "ViT-B/32": Model(published_vit, expert_vit, "progeo_vit_b32"),
}


class OurLoop(Loop):
    """The training of the program, see `Trainer`."""

    def __init__(self, task: Task) -> None:
        self.trainer = start_training(task)
        self.training, self.accelerator = self.trainer.task, task.accelerator
        self.encoder = self.training.model
        self.batches = self.training.batches(0, first_step=0)
        self.training.begin_epoch(0)

    def decode(self) -> list[MicroBatch]:
        """Draw the next batch."""
        return next(self.batches)

    def train(self, decoded: list[MicroBatch]) -> None:
        """Take a step on a batch, which augments it first."""
        list(take_steps([decoded], self.training.losses, self.training.optimizer, self.accelerator))

    def run_epoch(self) -> None:
        """Train an epoch."""
        self.trainer.train_epoch(StopRequest())


def main() -> None:
    """Print a table for each network and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often everything is measured")
    steps = 4 if choose_processor().device.type == "cpu" else 100
    parser.add_argument("--steps", type=int, default=steps, help="steps of an epoch; 0 measures the parts only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_classes(Path(folder) / "images")
        for name in MODELS:
            for precision in PRECISIONS:
                print(compare_loops(name, precision, Path(folder), options), flush=True)


def write_classes(folder: Path) -> None:
    """Write an image of each class, 100 m from the next; classes share the content of a few files."""
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder.parent) as originals:
        write_images(Path(originals), NUM_FILES, IMAGE_SIDE)
        files = sorted(Path(originals).iterdir())
        for label in range(NUM_CLASSES):
            os.link(files[label % NUM_FILES], folder / f"@{100 * label}@0@.jpg")


def compare_loops(name: str, precision: Precision, folder: Path, options: argparse.Namespace) -> str:
    """Format what an image takes in every part and in the whole, and the ratios of the plain loops to ours."""
    accelerator = start_accelerator(precision)
    build = partial(build_loops, MODELS[name], precision, folder, accelerator=accelerator)
    loops = build(steps=options.rounds + 1, num_workers=0)  # one more for the operations
    rows = time_parts(loops, accelerator, rounds=options.rounds)
    del loops
    gc.collect()  # the networks of the parts
    if options.steps:
        loops = build(steps=options.steps, num_workers=min(4, os.cpu_count() or 1))
        rows += time_whole(loops, accelerator, images=options.steps * BATCH_SIZE, rounds=options.rounds)
    title = f"{name}, {'float32' if precision == 'no' else precision}"
    columns = "".join(f"{loop:>12}" for loop in ("published", "expert", "ours"))
    return "\n".join([f"{title:32}{columns}{'ratios of time':>18}", *rows, ""])


def build_loops(
    model: Model, precision: Precision, folder: Path, *, steps: int, num_workers: int, accelerator: Accelerator
) -> list[Loop]:
    """Build the published loop, the expert's and ours, whose epochs have the same number of steps."""
    torch.manual_seed(0)
    kinds: dict[type[PlainLoop], Callable[[], nn.Module]] = {PublishedLoop: model.published, ExpertLoop: model.expert}
    plain = [
        kind(
            sorted((folder / "images").iterdir()),
            build(),
            input_side=INPUT_SIDE,
            batch_size=BATCH_SIZE,
            steps=steps,
            device=accelerator.device,
            autocast=precision != "no",
            num_workers=num_workers,
        )
        for kind, build in kinds.items()
    ]
    return [*plain, OurLoop(our_task(model.config, precision, folder, steps, num_workers, accelerator))]


def our_task(
    config: str, precision: Precision, folder: Path, steps: int, num_workers: int, accelerator: Accelerator
) -> Task:
    """Read the settings of a published configuration, with random weights, without text and with a small set."""
    changed = {
        "out": folder / "run",
        "data.train_folder": folder / "images",
        "data.num_workers": num_workers,
        "validation.kind": "none",
        "validation.folder": "null",
        "mixed_precision": precision,
        "model.weights": "random",
        "encoder.image_size": INPUT_SIDE,
        "text.weight": 0,
        "cells.min_images_per_class": 1,
        "cells.groups_per_side": 1,
        "cells.groups_per_heading": 1,
        "cells.num_groups": 1,
        "training.batch_size": BATCH_SIZE,
        "training.iterations_per_epoch": steps,
        "training.keep": "last",
    }
    words = [word for name, value in changed.items() for word in (f"--{name}", value)]
    settings = parse_settings(["--config", config, *words])
    validation = build_validation(settings.validation, settings.data)
    return Task(settings, read_training_images(settings), validation, accelerator)


def time_parts(loops: Sequence[Loop], accelerator: Accelerator, *, rounds: int) -> list[str]:
    """Format the time of each part, and the share of the matrix rate that the step reaches."""
    threads, clock = torch.get_num_threads(), clock_of_one_core(accelerator)
    if accelerator.device.type == "cpu":
        torch.set_num_threads(1)
    seconds = min_measures([partial(seconds_of_parts, loop, clock) for loop in loops], rounds=rounds)
    rate = matrix_rate(accelerator, clock)
    shares = [floating_point_operations(loop) / each[-1] / rate for loop, each in zip(loops, seconds, strict=True)]
    torch.set_num_threads(threads)
    decode, augment, step = zip(*seconds, strict=True)
    return [
        times_row("decode, ms", decode),
        times_row("augment, ms", augment),
        times_row("decode and augment, ms", [sum(pair) for pair in zip(decode, augment, strict=True)]),
        times_row("step, ms", step),
        times_row("together, ms", [sum(each) for each in seconds]),
        row("step, % of the matrix rate", [100 * share for share in shares], f"of {rate / 1e9:,.0f} GFLOPS"),
    ]


def min_measures(functions: Sequence[Callable[[], Sequence[float]]], *, rounds: int) -> list[list[float]]:
    """Return the minimum of every number that each function returns, with the functions alternating."""
    measures = [[function() for function in functions] for _ in range(rounds)]
    return [[min(values) for values in zip(*of_one, strict=True)] for of_one in zip(*measures, strict=True)]


def seconds_of_parts(loop: Loop, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of decoding, of augmentation up to the input of the encoder, and of the step after it."""
    times = [clock()]
    decoded = loop.decode()
    times.append(clock())
    with loop.encoder.register_forward_pre_hook(lambda *_: times.append(clock())):
        loop.train(decoded)
    times.append(clock())
    return [end - start for start, end in pairwise(times)]


def matrix_rate(accelerator: Accelerator, clock: Callable[[], float]) -> float:
    """Measure the floating point operations per second of a large matrix product in the precision of the networks."""
    side = 2048 if accelerator.device.type == "cpu" else 8192
    dtype = torch.float32 if accelerator.mixed_precision == "no" else torch.bfloat16
    factors = torch.randn(2, side, side, device=accelerator.device, dtype=dtype)
    (seconds,) = min_seconds([lambda: factors[0] @ factors[1]], clock, rounds=6)
    return 2 * side**3 / seconds


def floating_point_operations(loop: Loop) -> int:
    """Count those of the matrix products and convolutions in a step."""
    decoded = loop.decode()
    with FlopCounterMode(display=False) as counter:
        loop.train(decoded)
    return counter.get_total_flops()


def time_whole(loops: Sequence[Loop], accelerator: Accelerator, *, images: int, rounds: int) -> list[str]:
    """Format time and speed of an epoch of so many images."""
    epochs = min_measures([partial(measures_of_epoch, loop, accelerator) for loop in loops], rounds=rounds)
    wall, cpu, peak = zip(*epochs, strict=True)
    of_device = (
        times_row("whole, CPU ms", cpu, images)
        if accelerator.device.type == "cpu"
        else row("whole, peak GB beside weights", [each / 1e9 for each in peak])
    )
    return [
        times_row("whole, ms", wall, images),
        of_device,
        row("whole, images/s", [images / each for each in wall]),
    ]


def measures_of_epoch(loop: Loop, accelerator: Accelerator) -> tuple[float, float, float]:
    """Return wall seconds and CPU seconds of an epoch, and the peak memory that it takes on a GPU, else 0."""
    has_gpu = accelerator.device.type == "cuda"
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if has_gpu else 0
    start, start_of_cpu = clock_of_device(), cpu_seconds()
    loop.run_epoch()
    wall, cpu = clock_of_device() - start, cpu_seconds() - start_of_cpu
    return wall, cpu, torch.cuda.max_memory_allocated() - held if has_gpu else 0


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all processes that it has started."""
    mine = psutil.Process()
    running = [each.cpu_times()[:2] for each in mine.children(recursive=True)]
    return sum(mine.cpu_times()[:4]) + sum(map(sum, running))  # the last two of the four are those that have ended


def times_row(name: str, seconds: Sequence[float], images: int = BATCH_SIZE) -> str:
    """Format milliseconds per image, and the ratios of the published loop and of the expert's to ours."""
    *plain, ours = seconds
    ratios = "".join(f"{each / ours:8.2f}" for each in plain)
    return row(name, [1e3 * each / images for each in seconds], ratios)


def row(name: str, values: Sequence[float], rest: str = "") -> str:
    """Format a value of each loop."""
    return f"{name:32}{''.join(f'{value:12.2f}' for value in values)}{rest:>18}"


if __name__ == "__main__":
    main()
