"""Compare recipes of stage 2 at equal steps: one setting changed at a time, several seeds, without text.

Run `python -m benchmarks.recipes CONFIG ... --file_side 128` with settings of stage 2, such as those in
benchmarks/configs (whose folders are given by `--data.train_folder` and `--validation.folder`); docs/recipes.md holds
the results. With `--file_side` images are copied at a smaller size first.
"""

import tempfile
from pathlib import Path

from benchmarks.short_trainings import build_task, parse_arguments, print_head, print_row, train_ours

BASE = ["--training.ema_decay", "null"]
RECIPES = {
    "as published": [],
    "weights averaged (0.9)": ["--training.ema_decay", "0.9"],
    "weights averaged (0.98)": ["--training.ema_decay", "0.98"],
    "cosine, 50 steps of warm-up": ["--training.schedule", "cosine", "--training.warmup_steps", "50"],
    "arcface": ["--head.kind", "arcface"],
    "linear": ["--head.kind", "linear"],
    "4 images of a class": ["--training.images_per_class", "4"],
    "crops of 0.25 to 1": ["--augmentation.crop_scale", "[0.25,1]"],
}


def main() -> None:
    """Print a table for each configuration."""
    options, words = parse_arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        for config in options.configs:
            for name, changed in RECIPES.items():
                tasks = [
                    build_task(config, options, [*words, *BASE, *changed], seed=seed, folder=Path(folder))
                    for seed in options.seeds
                ]
                if not changed:
                    print_head(config, tasks[0])
                trained = [train_ours(task, lambda trainer: (trainer.model,)) for task in tasks]
                recalls, seconds = zip(*((each.recalls[0], each.seconds_per_step) for each in trained), strict=True)
                print_row(name, recalls, seconds)


if __name__ == "__main__":
    main()
