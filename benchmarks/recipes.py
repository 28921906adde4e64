"""What choices of stage 2 give at equal steps: one setting changed at a time, several seeds, without text.

Run `python -m benchmarks.recipes configs/sf_xl_sample.yaml configs/cambridge_sample.yaml --file_side 128`, or with any
other settings of stage 2; docs/recipes.md holds what it gave. With `--file_side` images are copied at a smaller size
first.
"""

import tempfile
from pathlib import Path

from benchmarks.short_trainings import build_task, parse_arguments, table, train_ours

RECIPES = {
    "as published": [],
    "weights averaged (0.9)": ["--training.ema_decay", "0.9"],
    "weights averaged (0.98)": ["--training.ema_decay", "0.98"],
    "weights averaged (0.995)": ["--training.ema_decay", "0.995"],
    "cosine": ["--training.schedule", "cosine"],
    "cosine, 50 steps of warm-up": ["--training.schedule", "cosine", "--training.warmup_steps", "50"],
    "arcface": ["--head.kind", "arcface"],
    "linear": ["--head.kind", "linear"],
    "weight decay 0.05": ["--training.weight_decay", "0.05"],
    "2 images of a class": ["--training.images_per_class", "2"],
    "4 images of a class": ["--training.images_per_class", "4"],
    "4 of a class, triplet loss": ["--training.images_per_class", "4", "--triplet.weight", "1"],
    "no crops": ["--augmentation.crop_scale", "[1,1]"],
    "crops of 0.25 to 1": ["--augmentation.crop_scale", "[0.25,1]"],
}


def main() -> None:
    """Print a table for each configuration."""
    options, words = parse_arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        for config in options.configs:
            rows: dict[str, list[float]] = {name: [] for name in RECIPES}
            seconds: dict[str, list[float]] = {name: [] for name in RECIPES}
            for name, changed in RECIPES.items():
                for seed in options.seeds:
                    task = build_task(config, options, [*words, *changed], seed=seed, folder=Path(folder))
                    trained = train_ours(task, Path(folder), lambda training: (training.result,))
                    rows[name] += trained.recalls
                    seconds[name].append(trained.seconds_per_step)
            title = f"{config}: {options.steps} steps, {len(task.val_set.queries)} queries, {options.image_size} px"
            print("\n".join(table(title, rows, seconds)), flush=True)


if __name__ == "__main__":
    main()
