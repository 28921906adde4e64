"""Short trainings of stage 2 without text on a small set, for benchmarks that compare training results."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from progeo.commands.train_encoder import build_training, read_training_images, train_encoder
from progeo.commands.train_prompts import train_prompts
from progeo.config.parsing import parse_arguments as parse_words
from progeo.config.settings import settings_of
from progeo.config.training import EncoderSettings
from progeo.data.decode import read_image
from progeo.engine.accelerator import start_accelerator
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import StopRequest
from progeo.image_files import Orientation
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import Encoder
from progeo.places.catalogue import read_catalogue
from progeo.training.image_training import ImageTraining
from progeo.training.places import TrainingImages
from progeo.training.trainer import Trainer
from progeo.training.validation import Validation, build_validation

CONFIGS = Path(__file__).parent / "configs"
IN_THIS_PROCESS = ["--data.num_workers", "0", "--training.cache_images", "true"]
"""Settings for trainings whose process CPU time is their cost."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Task:
    """Settings, training images and validation set of a training."""

    settings: EncoderSettings
    images: TrainingImages
    validation: Validation
    accelerator: Accelerator

    def recall_at_1(self, encoder: Encoder) -> float:
        """Compute the validation R@1 in percent."""
        return self.validation.measure(encoder, self.accelerator, classifier=None).best


@dataclass(frozen=True)
class Trained:
    """Results of a training."""

    recalls: tuple[float, ...]
    """R@1 of each encoder of the training, in percent."""
    seconds_per_step: float


@dataclass(frozen=True)
class Epoch:
    """The state of a training after an epoch."""

    steps: int
    cpu_seconds: float
    """Process CPU time of all steps so far, without validations."""
    loss: float
    recall: float
    """R@1 in percent."""


def parse_arguments(description: str, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments of benchmarks that take configurations; the rest are settings of stage 2."""
    parser = build_parser(description)
    parser.add_argument(
        "configs", nargs="+", type=Path, help="settings of stage 2 with a small set, such as a sample's"
    )
    return parser.parse_known_args(arguments)


def build_parser(
    description: str, *, steps: int = 400, seeds: Sequence[int] = (0, 1, 2, 3), **defaults: int
) -> argparse.ArgumentParser:
    """Build a parser of the arguments that all these benchmarks share, with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--image_size", type=int, default=64, help="pixels of crops and of validation images")
    parser.add_argument(
        "--file_side", type=int, help="copy the images at this side first; without it take them as they are"
    )
    parser.add_argument("--steps", type=int, default=steps, help="steps of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="a training for each")
    parser.set_defaults(**defaults)
    return parser


def build_task(config: Path, options: argparse.Namespace, words: Iterable[str], *, seed: int, folder: Path) -> Task:
    """Read settings and images; images of another size are written to `folder` once.

    Raises:
        ValueError: the steps are not a whole number of epochs.
    """
    chosen = ["--config", config, "--text.weight", 0, "--encoder.image_size", options.image_size, "--seed", seed]
    settings = parse_settings([*chosen, "--training.cache_images", "false", *words])
    per_epoch = min(settings.training.iterations_per_epoch, options.steps)
    if options.steps % per_epoch:
        raise ValueError(f"--steps must be a multiple of {per_epoch}, the steps of an epoch, got {options.steps}.")
    steps = ["--training.iterations_per_epoch", per_epoch, "--training.epochs", options.steps // per_epoch]
    # Nothing is written here: no checkpoint, as that at the end of an epoch is not, and no rows within epochs.
    steps += ["--training.checkpoint_every", per_epoch, "--training.log_every", "null"]
    if options.file_side is not None:
        copies = [
            _small_copy(path, options.file_side, folder, settings.data.orientation)
            for path in (settings.data.train_folder, settings.validation.folder)
        ]
        steps += ["--data.train_folder", copies[0], "--validation.folder", copies[1]]
    settings = parse_settings([*chosen, "--training.cache_images", "false", *words, *steps])
    validation = build_validation(settings.validation, settings.data)
    return Task(settings, read_training_images(settings), validation, start_accelerator(settings.mixed_precision))


def parse_settings(words: Iterable[object]) -> EncoderSettings:
    """Parse settings of stage 2, as its command does."""
    stage_1 = set(settings_of(train_prompts))
    return parse_words(train_encoder, [str(word) for word in words], others=lambda: stage_1)["settings"]


def train_ours(task: Task, results: Callable[[Trainer], Sequence[Encoder]]) -> Trained:
    """Train as `stage2_image.py` does, without checkpoints; `results` selects the encoders to test."""
    trainer = start_training(task)
    start = time.perf_counter()
    while not trainer.finished:
        trainer.train_epoch(StopRequest())
    seconds = time.perf_counter() - start
    recalls = tuple(task.recall_at_1(encoder) for encoder in results(trainer))
    task.accelerator.free_memory()
    return Trained(recalls, seconds / trainer.steps_done)


def train_epochs(task: Task, trainer: Trainer) -> Iterator[Epoch]:
    """Train to the end, as `train_ours` does, and measure after each epoch."""
    seconds = 0.0
    while not trainer.finished:
        start = time.process_time()
        losses = trainer.train_epoch(StopRequest())
        seconds += time.process_time() - start
        yield Epoch(trainer.steps_done, seconds, losses["loss"], task.recall_at_1(trainer.model))
    task.accelerator.free_memory()


def start_training(task: Task, change: Callable[[ImageTraining], object] = lambda training: None) -> Trainer:
    """Start a training without checkpoints: extract the teacher's descriptors, if any, and set the first weights.

    Args:
        change: changes the training before anything is computed.
    """
    training, run = build_training(task.settings, task.images, task.accelerator), RunFolder(task.settings.out)
    change(training)
    if training.teacher is not None:
        training.teacher.prepare(task.images.catalogues, task.settings.data)
    trainer = Trainer(
        training,
        task.settings.training,
        run,
        checkpoints=run.checkpoints,
        seed=task.settings.seed,
        accelerator=task.accelerator,
    )
    trainer.resume()
    return trainer


def print_epochs(name: str, epochs: Iterable[Epoch]) -> None:
    """Print R@1 after every epoch, with the loss, the number of steps and the CPU seconds so far."""
    columns = (
        f"{each.recall:6.1f}"
        + (f" ({each.steps}, loss {each.loss:.3f}, {each.cpu_seconds:.0f} s)" if each.steps else "")
        for each in epochs
    )
    print(f"{name:44}{''.join(columns)}", flush=True)


def print_head(config: Path, task: Task) -> None:
    """Print the configuration shared by the rows below."""
    training, (height, width) = task.settings.training, as_height_width(task.settings.encoder.image_size)
    steps = training.epochs * training.iterations_per_epoch
    print(f"{config}: {steps} steps of {training.batch_size}, {height} x {width} px, {task.validation}")
    print(f"{'val R@1':36}{'mean':>6}{'std':>6}{'s/step':>8}  of each seed", flush=True)


def print_row(name: str, recalls: Sequence[float], seconds: Sequence[float]) -> None:
    """Print mean and std over the seeds, seconds per step, and the R@1 of each seed."""
    each = " ".join(f"{value:5.1f}" for value in recalls)
    std = np.std(recalls, ddof=1) if len(recalls) > 1 else math.nan
    print(f"{name:36}{np.mean(recalls):6.1f}{std:6.1f}{np.mean(seconds):8.3f}  {each}", flush=True)


def _small_copy(folder: Path, side: int, out: Path, orientation: Orientation) -> Path:
    """Copy a folder of images at `side` x `side` pixels, with the same names and in the given orientation."""
    copy = out / f"{side}" / folder.resolve().relative_to("/")
    catalogue = read_catalogue(folder, positions="ignored")
    for row in range(len(catalogue)):
        path = copy / catalogue.name(row)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            image = to_pil_image(read_image(catalogue.path(row), orientation))
            image.resize((side, side), Image.Resampling.LANCZOS).save(path, quality=JPEG_QUALITY)
    return copy
