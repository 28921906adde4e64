"""Train a small backbone with each aggregation and loss at equal steps, and measure R@1 before and after.

Run `python -m benchmarks.aggregation_trainings CONFIG ...` with benchmarks/configs/sf_xl_sample.yaml or
cambridge_sample.yaml, whose folders are given by `--data.train_folder` and `--validation.folder`; docs/recipes.md
holds the results. Batches hold 8 classes of 4 images for both losses; the weights before training are random.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.short_trainings import IN_THIS_PROCESS, build_parser, build_task, start_training, train_epochs

BASE = [
    *(*IN_THIS_PROCESS, "--training.ema_decay", "null", "--training.images_per_class", "4"),
    *("--training.encoder_learning_rate", "5e-4", "--training.schedule", "cosine", "--training.warmup_steps", "50"),
]
AGGREGATIONS = {
    "GeM": ["gem", "--encoder.descriptor_dim", "256"],
    "NetVLAD": ["netvlad", "--encoder.aggregation_options", "num_clusters=8"],
    "SALAD": [
        *("salad", "--encoder.aggregation_options"),
        *("num_clusters=8", "cluster_dim=32", "token_dim=64", "hidden_dim=128", "dropout=0.1"),
    ],
    "BoQ": ["boq", "--encoder.aggregation_options", "channels=64", "num_queries=16", "rows=16"],
}
LOSSES = {
    "multi-similarity": ["--head.weight", "0", "--multi_similarity.weight", "1"],
    "CosFace": ["--head.weight", "1"],
}


def main() -> None:
    """Print a table for each configuration."""
    parser = build_parser(__doc__.splitlines()[0], steps=600, seeds=(0, 1), image_size=96, file_side=112)
    parser.add_argument("configs", nargs="+", type=Path, help="settings of stage 2 with a sample")
    options, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for config in options.configs:
            print(f"{config}: {options.steps} steps, R@1 before -> after, of each seed")
            print(f"{'aggregation':14}{'loss':18}{'dimensions':>10}{'CPU s':>8}", flush=True)
            for aggregation, chosen in AGGREGATIONS.items():
                for loss, losses in LOSSES.items():
                    changed = ["--encoder.descriptor_dim", "null", "--encoder.aggregation", *chosen, *losses]
                    rows = [
                        train([*words, *BASE, *changed], config, options, seed=seed, folder=folder)
                        for seed in options.seeds
                    ]
                    _print_row(aggregation, loss, rows)


def train(
    words: Sequence[str], config: Path, options: argparse.Namespace, *, seed: int, folder: Path
) -> tuple[int, float, float, float]:
    """Train once and return the dimension, R@1 before and after in percent, and the CPU seconds of all steps."""
    task = build_task(config, options, [*words, "--out", str(folder / "run")], seed=seed, folder=folder)
    trainer = start_training(task)
    before = task.recall_at_1(trainer.model)
    *_, last = train_epochs(task, trainer)
    return trainer.model.descriptor_dim, before, last.recall, last.cpu_seconds


def _print_row(aggregation: str, loss: str, rows: Sequence[tuple[int, float, float, float]]) -> None:
    recalls = "  ".join(f"{before:5.1f} -> {after:5.1f}" for _, before, after, _ in rows)
    print(f"{aggregation:14}{loss:18}{rows[0][0]:10}{np.mean([row[3] for row in rows]):8.0f}  {recalls}", flush=True)


if __name__ == "__main__":
    main()
