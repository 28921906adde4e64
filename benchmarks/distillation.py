"""Compare what a small student learns with and without a teacher, at equal steps and in the same CPU time.

Run `python -m benchmarks.distillation --data.train_folder sf_xl_sample/train --validation.folder sf_xl_sample/val`,
with any settings of stage 2 after these. For every seed a teacher, the tiny ResNet of sf_xl_sample.yaml, is trained by
classes; then students, the 41 thousand parameters of sf_xl_distillation.yaml, from the same weights in each way. All on
one thread and in this process, so that process CPU time is the cost of a training.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks import small_networks  # noqa: F401 - registers the student
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
from progeo.export.weights import save_encoder

CLASSES = ["--training.batches", "classes", "--head.weight", "1", "--cosine.weight", "0"]
IN_STEP = ["--teacher.features", "step"]
STEPS_PER_EPOCH = 250
WAYS = {
    "classes": [*CLASSES, "--teacher.encoder", "null"],
    "classes, gram x 1000": [*CLASSES, *IN_STEP, "--gram.weight", "1000"],
    "classes x 0.1, gram x 1000": [*CLASSES, *IN_STEP, "--head.weight", "0.1", "--gram.weight", "1000"],
    "classes, gram and attention x 1000": [*CLASSES, *IN_STEP, "--gram.weight", "1000", "--attention.weight", "1000"],
    "classes, cosine x 10, cached": [*CLASSES, "--cosine.weight", "10"],
    "no labels, cosine, cached": [],
    "no labels, cosine, in the step": IN_STEP,
}
"""Name of a row -> settings besides those of sf_xl_distillation.yaml."""


def main() -> None:
    """Print R@1 after every epoch of each way."""
    torch.set_num_threads(1)
    parser = build_parser(__doc__.splitlines()[0], steps=1000, seeds=(0, 1), file_side=128)
    parser.add_argument("--teacher_steps", type=int, default=400, help="steps of the training of each teacher")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="rows of the table")
    options, words = parser.parse_known_args()
    steps = options.steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words += [*IN_THIS_PROCESS, "--out", str(folder / "run")]
        for seed in options.seeds:
            options.steps = options.teacher_steps
            teacher = folder / f"teacher_{seed}"
            task = build_task(CONFIGS / "sf_xl_sample.yaml", options, words, seed=seed, folder=folder)
            trainer = start_training(task)
            print_epochs(f"seed {seed}, teacher", list(train_epochs(task, trainer)))
            save_encoder(teacher, trainer.model, provenance={}, recalls={})
            options.steps = steps
            for name in options.ways:
                used = ["--teacher.encoder", teacher, "--teacher.descriptor_cache", folder / "descriptors"]
                used += ["--training.iterations_per_epoch", STEPS_PER_EPOCH, *WAYS[name]]
                print_epochs(f"seed {seed}, {name}", train_student([*words, *used], options, seed=seed, folder=folder))


def train_student(words: list[object], options: object, *, seed: int, folder: Path) -> list[Epoch]:
    """Train a student and measure it after every epoch."""
    task = build_task(CONFIGS / "sf_xl_distillation.yaml", options, words, seed=seed, folder=folder)
    return list(train_epochs(task, start_training(task)))


if __name__ == "__main__":
    main()
