"""Benchmark NetVLAD, mined tuples and teachers of stage 2 against plain formulations of the same.

Run `python -m benchmarks.tuples`.
"""

import ctypes
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from benchmarks.images import write_images
from benchmarks.timing import clock_of_one_core, min_seconds
from progeo.data.options import DataOptions
from progeo.engine.accelerator import start_accelerator
from progeo.export.weights import save_encoder
from progeo.losses import cosine_distillation, gram_distillation
from progeo.models.aggregation import NetVLAD
from progeo.models.encoder import Encoder, build_encoder
from progeo.models.heads import build_head
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.training.mining import draw_pool, find_candidates, mine
from progeo.training.options import TeacherOptions
from progeo.training.teacher import Teacher

MAP = (2, 512, 30, 40)
"""Feature maps of VGG-16 for two images of 480 x 640 pixels."""
NUM_CLUSTERS = 64
NUM_QUERIES, NUM_DATABASE, SIDE_M = 200, 10_000, 700
DIM, POOL, NEGATIVES = 512, 1000, 10
STUDENT, TEACHER, INPUT_SIDE, BATCH_SIZE, NUM_CLASSES = "mobilenet_v3_small", "resnet50", 224, 16, 1000


def print_comparisons() -> None:
    """Print all rows; on a CPU they take one thread and process CPU time, on a GPU wall time."""
    accelerator = start_accelerator("no")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(compare_netvlad(accelerator))
    print(compare_mining())
    with tempfile.TemporaryDirectory() as folder:
        print(compare_teachers(Path(folder), accelerator))
    torch.set_num_threads(threads)


def compare_netvlad(accelerator: Accelerator) -> str:
    """Compare NetVLAD with the published formulation, which materializes the residuals of all pixels and clusters."""
    torch.manual_seed(0)
    aggregation = NetVLAD(MAP[1], NUM_CLUSTERS).to(accelerator.device)
    feature_map = torch.randn(MAP, device=accelerator.device, requires_grad=True)
    plain = partial(materialized_netvlad, aggregation)
    torch.testing.assert_close(plain(feature_map), aggregation(feature_map), rtol=1e-4, atol=1e-5)

    def both_ways(function: Callable[[Tensor], Tensor]) -> None:
        aggregation.zero_grad()
        function(feature_map)[:, 0].sum().backward()

    jobs: dict[str, Sequence[Callable[[], Any]]] = {
        "forward": [torch.no_grad()(partial(each, feature_map)) for each in (plain, aggregation)],
        "forward and backward": [partial(both_ways, each) for each in (plain, aggregation)],
    }
    shape = " x ".join(map(str, MAP))
    lines = [f"{'NetVLAD, ' + shape:32}{'plain, ms':>12}{'ours, ms':>12}{'ratio':>8}{'plain, MB':>12}{'ours, MB':>12}"]
    for name, functions in jobs.items():
        slow, fast = min_seconds(functions, clock_of_one_core(accelerator), rounds=4)
        megabytes = "".join(f"{peak_bytes(each, accelerator) / 1e6:12.0f}" for each in functions)
        lines.append(f"{name:32}{1e3 * slow:12.1f}{1e3 * fast:12.1f}{slow / fast:8.1f}{megabytes}")
    return "\n".join(lines)


def materialized_netvlad(aggregation: NetVLAD, feature_map: Tensor) -> Tensor:
    """Compute the descriptors (B, K C) of (B, C, h, w) from all residuals (B, K, C, h w)."""
    features = F.normalize(feature_map, dim=1)
    assigned = F.conv2d(features, aggregation.assignment[:, :, None, None]).flatten(2).softmax(dim=1)
    residuals = features.flatten(2)[:, None] - aggregation.centroids[None, :, :, None]
    residuals = residuals * assigned[:, :, None]
    return F.normalize(F.normalize(residuals.sum(dim=3), dim=2).flatten(1), dim=1)


def peak_bytes(function: Callable[[], object], accelerator: Accelerator) -> int:
    """Return the peak memory that a function takes beyond that in use before: of a GPU if there is one."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would be used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[name].split()[0])


def compare_mining() -> str:
    """Compare the mining of tuples with the published formulation in Python lists, with the same results."""
    rng = np.random.default_rng(0)
    query_m, database_m = (rng.uniform(0, SIDE_M, (count, 2)) for count in (NUM_QUERIES, NUM_DATABASE))
    queries, database = (
        F.normalize(torch.from_numpy(rng.normal(size=(count, DIM)).astype(np.float32))).numpy()
        for count in (NUM_QUERIES, NUM_DATABASE)
    )
    found = find_candidates(query_m, database_m, positive_radius_m=10, exclusion_radius_m=25)
    queries = queries[found.queries]
    positives, excluded = ([rows.tolist() for rows in each] for each in (found.positives, found.excluded))
    kept: list[list[int]] = [[] for _ in positives]
    previous, seconds = None, np.zeros(2)
    for epoch in range(2):
        start = time.process_time()
        turn = plain_turn(queries, database, positives, excluded, kept)
        seconds[0] += time.process_time() - start
        pools, nearest, kept = ([each[part] for each in turn] for part in range(3))
        start = time.process_time()
        for query, rows in enumerate(found.excluded):  # not used: the pools are those of the plain formulation
            draw_pool(rows, NUM_DATABASE, pool=POOL, seed=0, generation=0, epoch=epoch, query=query)
        arrays = [np.array(pool) for pool in pools]
        mined = mine(queries, database, found, arrays, previous=previous, num_negatives=NEGATIVES)
        seconds[1] += time.process_time() - start
        previous = mined.negatives
        np.testing.assert_array_equal(mined.positive, nearest)
        np.testing.assert_array_equal(mined.negatives, kept)
    slow, fast = 1e3 * seconds / 2 / len(queries)
    return (
        f"mining of {len(queries)} queries among {NUM_DATABASE} images of {DIM} dimensions, two turns: plain "
        f"{slow:.2f} ms a query, ours {fast:.2f}, ratio {slow / fast:.1f}"
    )


def plain_turn(
    queries: np.ndarray,
    database: np.ndarray,
    positives: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]],
    kept: Sequence[Sequence[int]],
) -> list[tuple[list[int], int, list[int]]]:
    """Rank the database for every query and go through the ranking in Python lists, as the published sampler does.

    Returns:
        Rows of the random pool, of the nearest positive and of the negatives, for each query.
    """
    random.seed(0)
    similar = torch.from_numpy(queries) @ torch.from_numpy(database).T
    order = torch.argsort(2 - 2 * similar, dim=1)
    tuples = []
    for query in range(len(queries)):
        in_order = order[query].tolist()
        nearest = [row for row in in_order if row in positives[query]]
        allowed = [row for row in in_order if row not in excluded[query]]
        drawn = random.sample(range(len(allowed)), min(POOL, len(allowed)))
        ranks = sorted(set(drawn) | {allowed.index(row) for row in kept[query]})
        tuples.append(([allowed[rank] for rank in drawn], nearest[0], [allowed[rank] for rank in ranks[:NEGATIVES]]))
    return tuples


def compare_teachers(folder: Path, accelerator: Accelerator) -> str:
    """Compare steps of a student with the teacher in the step, with its cached descriptors, and without any."""
    images = folder / "images"
    images.mkdir()
    write_images(images, BATCH_SIZE, INPUT_SIDE)
    catalogue = read_catalogue(images)
    encoder = build_encoder(TEACHER, "random", INPUT_SIDE)
    save_encoder(folder / "teacher", encoder, provenance={}, recalls={})
    steps = {
        "classes": build_step(accelerator),
        "classes and gram, in the step": build_step(accelerator, _teacher(folder, "step", catalogue, accelerator)),
        "classes and gram, cached": build_step(accelerator, _teacher(folder, "cache", catalogue, accelerator)),
        "cosine only, cached": build_step(
            accelerator, _teacher(folder, "cache", catalogue, accelerator), by_classes=False
        ),
    }
    seconds = min_seconds(list(steps.values()), clock_of_one_core(accelerator), rounds=4)
    lines = [f"{STUDENT} with {TEACHER} as teacher: ms a step of {BATCH_SIZE} images of {INPUT_SIDE} px, ratio"]
    lines += [
        f"{name:32}{1e3 * each:12.1f}{each / seconds[0]:12.2f}" for name, each in zip(steps, seconds, strict=True)
    ]
    return "\n".join(lines)


def _teacher(folder: Path, features: Any, catalogue: Catalogue, accelerator: Accelerator) -> Teacher:
    options = TeacherOptions(encoder=folder / "teacher", features=features, descriptor_cache=folder / "cache")
    teacher = Teacher(options, accelerator)
    teacher.prepare([catalogue], DataOptions(train_folder=catalogue.folder, num_workers=0))
    return teacher


def build_step(accelerator: Accelerator, teacher: Teacher | None = None, *, by_classes: bool = True) -> Callable:
    """Build a training step by CosFace and the Gram matrix, or without classes by the cosine to the teacher."""
    dim = 512 if teacher is None else teacher.descriptor_dim
    student: Encoder = build_encoder(STUDENT, "random", INPUT_SIDE, descriptor_dim=dim).to(accelerator.device).train()
    head = build_head("cosface", dim, NUM_CLASSES, scale=30.0, margin=0.4).to(accelerator.device)
    optimizer = torch.optim.AdamW([*student.parameters(), *head.parameters()], fused=True)
    pixels, rows = (
        torch.rand(BATCH_SIZE, 3, INPUT_SIDE, INPUT_SIDE, device=accelerator.device),
        torch.arange(BATCH_SIZE),
    )

    def step() -> None:
        optimizer.zero_grad()
        descriptors = student(student.normalize(pixels))
        losses = []
        if by_classes:
            labels = rows.to(accelerator.device)
            losses.append(F.cross_entropy(head(descriptors, labels), labels))
        if teacher is not None:
            cached = teacher.of_rows(rows).to(accelerator.device) if teacher.is_cached else None
            targets = teacher(pixels, with_map=False)["teacher"] if cached is None else cached
            losses.append((gram_distillation if by_classes else cosine_distillation)(descriptors, targets))
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    print_comparisons()
