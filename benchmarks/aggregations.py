"""Compare aggregations with their published formulations: time and memory of a forward and a backward pass.

Run `python -m benchmarks.aggregations`, with the names of some rows for these alone. Both formulations have the same
weights and inputs, feature maps with channels last as ViTs give them and tokens of as many channels, in training mode;
their descriptors are compared first. CPU time on one core, the two alternating in one process; peak memory beyond the
inputs and weights, each in a process of its own.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain_aggregations import PLAIN
from benchmarks.timing import min_seconds
from progeo.models.aggregation import build_aggregation, find_aggregation
from progeo.models.backbones.family import Traits

DINOV2, RESNET = (768, 23, 23), (1024, 20, 20)
"""Channels, rows and columns of DINOv2-B at 322 px, and of a ResNet-50 without its last stage at 320 px."""
LARGEST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Row:
    """An aggregation of some options on feature maps of some shapes."""

    aggregation: str
    shapes: tuple[tuple[int, int, int], ...] = (DINOV2, RESNET)
    dim: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16


ROWS = {
    "boq": Row("boq", (DINOV2, RESNET), options={"channels": 384}, batch=4),
    "convap": Row("convap"),
    "edtformer": Row("edtformer", (DINOV2,)),
    "gem": Row("gem", dim=512),
    "gem_pool": Row("gem_pool"),
    "mixvpr of DINOv2": Row("mixvpr", (DINOV2,), options={"grid": DINOV2[1:]}),
    "mixvpr": Row("mixvpr", (RESNET,)),
    "netvlad": Row("netvlad"),
    "salad": Row("salad", (DINOV2,)),
    "salad of MegaLoc": Row("salad", (DINOV2,), options={"cluster_dim": 256}),
    "token_gem": Row("token_gem", (DINOV2,)),
}


def main() -> None:
    """Print time and memory of each formulation of the chosen rows."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, whose minimum counts")
    options = parser.parse_args()
    columns = ("ms, published", "ms, ours", "ratio", "MB, published", "MB, ours", "ratio")
    print(f"{'':<18}{'map':<16}" + "".join(f"{name:>15}" for name in columns))
    for name in options.rows:
        for shape in ROWS[name].shapes:
            ours, plain = (partial(run, *inputs(ROWS[name], shape, plain=plain)) for plain in (False, True))
            check_descriptors(ROWS[name], shape)
            ms = [1e3 * seconds for seconds in min_seconds((plain, ours), time.process_time, rounds=options.rounds)]
            mb = [peak_of(name, shape, plain=plain) for plain in (True, False)]
            values = "".join(f"{each[0]:>15.1f}{each[1]:>15.1f}{each[0] / each[1]:>15.2f}" for each in (ms, mb))
            print(f"{name:<18}{' x '.join(map(str, shape)):<16}{values}", flush=True)


def inputs(row: Row, shape: tuple[int, int, int], *, plain: bool) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Build one formulation of a row and its inputs, always of the same values."""
    torch.manual_seed(0)
    channels, height, width = shape
    head = build_aggregation(row.aggregation, Traits(channels, channels, channels, 14), row.dim, **row.options)
    tokens = torch.randn(row.batch, 1 + height * width, channels)
    parts = {"map": tokens[:, 1:].mT.unflatten(2, (height, width)), "token": tokens[:, 0]}
    needed = [parts[part].detach().requires_grad_() for part in find_aggregation(row.aggregation).needs]
    return partial(PLAIN[row.aggregation], head) if plain else head, needed


def run(head: Callable[..., Tensor], parts: list[Tensor]) -> None:
    """Compute descriptors and the gradients of all inputs and weights."""
    head(*parts).square().sum(dim=1).sqrt().cos().sum().backward()


@torch.no_grad()
def check_descriptors(row: Row, shape: tuple[int, int, int]) -> None:
    """Check that both formulations give the same descriptors, in eval mode."""
    head, parts = inputs(row, shape, plain=False)
    assert isinstance(head, nn.Module)
    difference = (head.eval()(*parts) - PLAIN[row.aggregation](head, *parts)).abs().max()
    assert difference < LARGEST_DIFFERENCE, f"descriptors of {row.aggregation} differ by {difference:.1e}"


def peak_of(name: str, shape: tuple[int, int, int], *, plain: bool) -> float:
    """Return the peak memory of one formulation in megabytes, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(measured_peak, (name, shape, plain))


def measured_peak(name: str, shape: tuple[int, int, int], plain: bool) -> float:
    """Return the megabytes that one pass takes in this process at most, beyond those taken before."""
    torch.set_num_threads(1)
    head, parts = inputs(ROWS[name], shape, plain=plain)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is taken now
    before = peak_megabytes()
    run(head, parts)
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """Return the peak memory of this process since `clear_refs`, which `ru_maxrss` would ignore."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
