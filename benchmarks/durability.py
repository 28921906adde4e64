"""Benchmark what it costs that files survive a loss of power, and that files which belong together are checked.

Run `python -m benchmarks.durability [FOLDER]` with a folder on the disk in question: a checkpoint and an encoder of a
ResNet-50 are written as they are, and without waiting for the disk; the encoder is loaded with its digests and
without. Wall time, the minimum of alternating rounds.
"""

import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from benchmarks.timing import min_seconds
from progeo.engine.checkpoint import save_checkpoint
from progeo.export.weights import load_encoder, save_encoder
from progeo.models.encoder import build_encoder

ROUNDS = 7


def main() -> None:
    """Print the results."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else ".") as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    """Write and load in a folder, and print the seconds."""
    encoder = build_encoder("resnet50", "random", 224)
    parameters = list(encoder.parameters())
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"encoder": encoder.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint = partial(save_checkpoint, folder, "epoch_000001_step_000000", state)
    save = partial(save_encoder, folder / "best", encoder, provenance={}, recalls={})
    save()
    shutil.copytree(folder / "best", folder / "plain")
    metadata = json.loads((folder / "plain/model.json").read_text())
    del metadata["files"]
    (folder / "plain/model.json").write_text(json.dumps(metadata))
    print(f"{'seconds':32}{'as it is':>10}{'without':>10}{'ratio':>8}")
    print(compare("checkpoint, synced", checkpoint, partial(unsynced, checkpoint)))
    print(compare("encoder saved, synced", save, partial(unsynced, save)))
    load = partial(load_encoder, folder / "best")
    print(compare("encoder loaded, digests", load, partial(load_encoder, folder / "plain")))


def compare(name: str, ours: partial, plain: partial) -> str:
    """Format the seconds of both and their ratio."""
    seconds, others = min_seconds([ours, plain], time.perf_counter, rounds=ROUNDS)
    return f"{name:32}{seconds:10.2f}{others:10.2f}{seconds / others:8.2f}"


def unsynced(write: partial) -> None:
    """Write without waiting for the disk."""
    with mock.patch("os.fsync"):
        write()


if __name__ == "__main__":
    main()
