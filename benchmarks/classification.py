"""Compare ways to localize photos of known places: exact retrieval, classes, class means, and the best cells searched.

First hold photos out, then train and evaluate with each head:

    progeo dataset split sf_xl_sample/train --per_class 2 --cells.cell_side_m 20 --cells.heading_bin_deg 360 \
        --cells.groups_per_heading 1 --out sf_xl_known
    python -m benchmarks.classification benchmarks/configs/sf_xl_classification.yaml sf_xl_known --out runs/sf_xl_known

A run that exists is not trained again. Further arguments are settings of the training, such as `--head.smoothing_m 20`.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from progeo.commands.classes import classes
from progeo.commands.evaluate import evaluate
from progeo.commands.train_encoder import train_encoder
from progeo.commands.train_prompts import train_prompts
from progeo.config.parsing import parse_arguments
from progeo.config.settings import settings_of
from progeo.evaluation.options import BenchmarkOptions, RankingOptions
from progeo.features.options import CacheOptions
from progeo.files import read_json

HEADS = {
    "arcface, easy margin": ("--head.kind", "arcface", "--head.easy_margin", "true"),
    "cosface": ("--head.kind", "cosface", "--head.easy_margin", "false"),
    "linear": ("--head.kind", "linear", "--head.easy_margin", "false"),
}
PROBES = (1, 3, 5)


def main() -> None:
    """Print a row of the table for every head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="settings of stage 2")
    parser.add_argument("folder", type=Path, help="folder with train and queries, see `progeo dataset split`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and evaluations")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    parser.add_argument("--radius_m", type=float, default=25.0, help="maximum error of a correct prediction")
    options, words = parser.parse_known_args()
    columns = ("exact", "raw scores", "cosines", "means", *(f"{count} of cells, read" for count in PROBES))
    print(f"{'R@1 and LR@1':24}{''.join(f'{column:>18}' for column in columns)}")
    for head in options.heads:
        run = options.out / head.partition(",")[0]
        train(options, run, [*HEADS[head], *words])
        print(
            f"{head:24}{''.join(f'{cell:>18}' for cell in results(options.folder, run, options.radius_m))}", flush=True
        )


def train(options: argparse.Namespace, run: Path, words: Sequence[str]) -> None:
    """Train stage 2, unless the run exists."""
    if (run / "stage2").exists():
        return
    folders = ["--out", run, "--data.train_folder", options.folder / "train", "--validation.folder", options.folder]
    arguments = [str(word) for word in ("--config", options.config, *folders, *words)]
    stage_1 = set(settings_of(train_prompts))
    train_encoder(**parse_arguments(train_encoder, arguments, others=lambda: stage_1))


def results(folder: Path, run: Path, radius_m: float) -> Iterator[str]:
    """Yield R@1 or LR@1 in percent of each way, and the share of the images that a query is compared with."""
    means = run / "means"
    if not means.exists():
        classes(str(run), folder=folder / "train", out=means, cache=CacheOptions(descriptor_cache=run / "descriptors"))
    ways: dict[str, dict[str, Any]] = {
        "exact": {},
        "raw": {"ranking": RankingOptions(by="classes", raw_scores=True)},
        "cosines": {"ranking": RankingOptions(by="classes")},
        "means": {"ranking": RankingOptions(by="classes")},
        **{f"cells_{count}": {"faiss": "cells", "probes": count, "classifier": str(means)} for count in PROBES},
    }
    for name, options in ways.items():
        out = run / "evaluation" / name
        evaluate(
            str(means if name == "means" else run),
            folder=folder,
            out=out,
            benchmark=BenchmarkOptions(database="train", positive_radius_m=radius_m),
            cache=CacheOptions(descriptor_cache=run / "descriptors"),
            **options,
        )
        found = read_json(out / "recalls.json")
        first = next(iter(found["recalls"].values()))
        read = found.get("rows read", "").partition("%")[0]
        yield f"{first:.1f}" + (f", {read.split()[-1]} %" if read else "")


if __name__ == "__main__":
    logging.getLogger("progeo").setLevel(logging.WARNING)
    main()
