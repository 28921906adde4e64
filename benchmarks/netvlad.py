"""Compare NetVLAD from clusters with a random start: before training, and after SARE on mined tuples.

Run `python -m benchmarks.netvlad --data.train_folder sf_xl_sample/train --validation.folder sf_xl_sample/val`, with any
settings of stage 2 after these. For every seed the tiny ResNet of sf_xl_netvlad.yaml gets NetVLAD untrained, and again
after it was trained by classes with a GeM (sf_xl_sample.yaml); from there it is trained on tuples. All on one thread
and in this process.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.short_trainings import (
    CONFIGS,
    IN_THIS_PROCESS,
    Epoch,
    build_parser,
    build_task,
    print_epochs,
    start_training,
    train_epochs,
)
from progeo.training.image_training import ImageTraining


def main() -> None:
    """Print R@1 of each start on each backbone, and after training from each start on the trained one."""
    torch.set_num_threads(1)
    parser = build_parser(__doc__.splitlines()[0], steps=240, seeds=(0, 1), image_size=96, file_side=128)
    parser.add_argument("--class_steps", type=int, default=600, help="steps of the training by classes")
    options, words = parser.parse_known_args()
    by_classes = argparse.Namespace(**{**vars(options), "steps": options.class_steps})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words += [*IN_THIS_PROCESS, "--out", str(folder / "run")]
        for seed in options.seeds:
            for from_clusters in (True, False):
                epochs = train_netvlad(words, options, None, from_clusters, seed=seed, folder=folder)
                print_epochs(f"seed {seed}, untrained, {start_name(from_clusters)}", epochs)
            epoch = ["--training.iterations_per_epoch", str(options.class_steps)]
            task = build_task(CONFIGS / "sf_xl_sample.yaml", by_classes, [*words, *epoch], seed=seed, folder=folder)
            trainer = start_training(task)
            print_epochs(f"seed {seed}, GeM by classes", list(train_epochs(task, trainer)))
            backbone = trainer.task.model.backbone.state_dict()
            for from_clusters in (True, False):
                epochs = train_netvlad(words, options, backbone, from_clusters, seed=seed, folder=folder)
                print_epochs(f"seed {seed}, trained, {start_name(from_clusters)}", epochs)


def start_name(from_clusters: bool) -> str:
    """Name a start in rows of the table."""
    return "from clusters" if from_clusters else "random start"


def train_netvlad(
    words: Sequence[str],
    options: argparse.Namespace,
    backbone: dict[str, Any] | None,
    from_clusters: bool,
    *,
    seed: int,
    folder: Path,
) -> list[Epoch]:
    """Measure an encoder with NetVLAD before its first step; if its backbone is trained, train it on tuples."""
    task = build_task(CONFIGS / "sf_xl_netvlad.yaml", options, words, seed=seed, folder=folder)

    def change(training: ImageTraining) -> None:
        if backbone is not None:
            training.encoder.backbone.load_state_dict(backbone)
        if not from_clusters:
            training.start = None

    trainer = start_training(task, change)
    before = Epoch(0, 0.0, float("nan"), task.recall_at_1(trainer.model))
    return [before, *(train_epochs(task, trainer) if backbone is not None else ())]


if __name__ == "__main__":
    main()
