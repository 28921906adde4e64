"""Short trainings of stage 2 without text on a small set, for benchmarks that compare training results."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from progeo.config.parsing import parse_settings
from progeo.config.training import Settings
from progeo.data.decode import read_image
from progeo.datasets.query_sets import QuerySet, load_query_set
from progeo.engine.accelerator import start_accelerator
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import StopRequest
from progeo.evaluation.recall import recall_at
from progeo.image_files import Orientation
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import Encoder
from progeo.places.catalogue import read_catalogue
from progeo.training.places import TrainingPlaces, read_training_places
from progeo.training.trainer import ImageTraining
from progeo.training.validation import retrieve

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Task:
    """Settings, training images and validation set of a training."""

    settings: Settings
    places: TrainingPlaces
    val_set: QuerySet
    accelerator: Accelerator

    def recall_at_1(self, encoder: Encoder) -> float:
        """Compute the validation R@1 in percent."""
        data = self.settings.data
        predictions = retrieve(
            encoder,
            self.val_set,
            self.accelerator,
            count=1,
            preprocessing=data.val_preprocessing,
            batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            orientation=data.orientation,
        )
        return float(recall_at(predictions, self.val_set.positives, (1,))[0])


@dataclass(frozen=True)
class Trained:
    """Results of a training."""

    recalls: tuple[float, ...]
    """R@1 of each encoder of the training, in percent."""
    seconds_per_step: float


def parse_arguments(description: str, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments shared by these benchmarks; the rest are settings, such as `--data.num_workers 4`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "configs", nargs="+", type=Path, help="settings of stage 2 with a small set, such as a sample's"
    )
    parser.add_argument("--image_size", type=int, default=64, help="pixels of crops and of validation images")
    parser.add_argument(
        "--file_side", type=int, help="copy the images at this side first; without it take them as they are"
    )
    parser.add_argument("--steps", type=int, default=400, help="steps of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="a training for each")
    return parser.parse_known_args(arguments)


def build_task(config: Path, options: argparse.Namespace, words: Iterable[str], *, seed: int, folder: Path) -> Task:
    """Read settings and images; images of another size are written to `folder` once.

    Raises:
        ValueError: the steps are not a whole number of epochs.
    """
    chosen = ["--config", config, "--text.weight", 0, "--encoder.image_size", options.image_size, "--seed", seed]
    settings = _parsed([*chosen, "--training.cache_images", "false", *words])
    per_epoch = min(settings.training.iterations_per_epoch, options.steps)
    if options.steps % per_epoch:
        raise ValueError(f"--steps must be a multiple of {per_epoch}, the steps of an epoch, got {options.steps}.")
    steps = ["--training.iterations_per_epoch", per_epoch, "--training.epochs", options.steps // per_epoch]
    steps += ["--training.checkpoint_every", per_epoch]  # none: that at the end of an epoch is not written here
    data = settings.data
    if options.file_side is not None:
        copies = [
            _small_copy(path, options.file_side, folder, data.orientation)
            for path in (data.train_folder, data.val_folder)
        ]
        steps += ["--data.train_folder", copies[0], "--validation.folder", copies[1]]
    settings = _parsed([*chosen, "--training.cache_images", "false", *words, *steps])
    data = settings.data
    val_set = load_query_set(
        data.val_folder,
        data.database,
        data.queries,
        radius_m=data.positive_radius_m,
        angle_deg=data.positive_angle_deg,
    )
    return Task(settings, read_training_places(settings), val_set, start_accelerator(settings.mixed_precision))


def train_ours(task: Task, results: Callable[[ImageTraining], Sequence[Encoder]]) -> Trained:
    """Train as `stage2_image.py` does, without checkpoints; `results` selects the encoders to test."""
    training = ImageTraining(task.settings, task.places, task.accelerator)
    start = time.perf_counter()
    while not training.finished:
        training.run_epoch(RunFolder(task.settings.run), StopRequest())
    seconds = time.perf_counter() - start
    recalls = tuple(task.recall_at_1(encoder) for encoder in results(training))
    task.accelerator.free_memory()
    return Trained(recalls, seconds / training.steps_done)


def print_head(config: Path, task: Task) -> None:
    """Print the configuration shared by the rows below."""
    training, (height, width) = task.settings.training, as_height_width(task.settings.model.image_size)
    steps = training.epochs * training.iterations_per_epoch
    print(
        f"{config}: {steps} steps of {training.batch_size}, {height} x {width} px, {len(task.val_set.queries)} queries"
    )
    print(f"{'val R@1':36}{'mean':>6}{'std':>6}{'s/step':>8}  of each seed", flush=True)


def print_row(name: str, recalls: Sequence[float], seconds: Sequence[float]) -> None:
    """Print mean and std over the seeds, seconds per step, and the R@1 of each seed."""
    each = " ".join(f"{value:5.1f}" for value in recalls)
    std = np.std(recalls, ddof=1) if len(recalls) > 1 else math.nan
    print(f"{name:36}{np.mean(recalls):6.1f}{std:6.1f}{np.mean(seconds):8.3f}  {each}", flush=True)


def _parsed(words: Iterable[object]) -> Settings:
    return parse_settings(Settings, [str(word) for word in words], program="benchmark")


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
