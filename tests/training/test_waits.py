"""A step asks the device for nothing: its numbers are read after the next step was taken."""

from collections import Counter

import pytest
import torch
from contracts import settings_for, training_builder
from torch.utils._python_dispatch import TorchDispatchMode

from progeo.data.augmentation import _jittered_batch
from progeo.engine.loop import take_steps

WAITING = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "repeat_interleave", "_unique2", "unique_dim"}
"""Operations whose result depends on values, so that a process waits for them."""
FROM_THE_HOST = {"lift_fresh"}
"""Operations that make a tensor of Python numbers, which a GPU gets by a copy that the process waits for."""

OF_THE_NETWORK = (
    *("convolution", "convolution_backward", "native_batch_norm", "native_batch_norm_backward"),
    *("relu_", "threshold_backward", "avg_pool2d", "avg_pool2d_backward"),
)
VIEWS = ("detach", "expand", "permute", "select", "split", "t", "transpose", "unbind", "unsqueeze", "view")

ALONE = {"text.weight": 0, "head.weight": 0}
TRAININGS = {
    "classes": {"text.weight": 0},
    "pairs": {
        **{"text.weight": 0, "triplet.weight": 1, "multi_similarity.weight": 1, "supcon.weight": 1},
        "training.images_per_class": 2,
    },
    "smoothed": {"text.weight": 0, "head.smoothing_m": 10},
    "tuples": {
        **ALONE,
        **settings_for(["tuples"], teacher=None),
        "tuples.weight": 1,
        "training.batch_size": 4,
    },
}


class Operations(TorchDispatchMode):
    """Counts operations by name; those with a mask of booleans as index wait as `nonzero` does."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        is_masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.counts["nonzero" if is_masked else name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=list(TRAININGS))
def training(request, config, tmp_path):
    return training_builder(config, {**TRAININGS[request.param], "out": tmp_path / "run"})()


def two_steps(training):
    """The steps of the first two batches, which are decoded before the first step."""
    training.begin_epoch(0)
    batches = [batch for batch, _ in zip(training.batches(0, first_step=0), range(2), strict=False)]
    return take_steps(batches, training.losses, training.optimizer, training.accelerator)


def test_a_step_waits_for_no_value(training):
    steps = two_steps(training)
    next(steps)  # the first makes the state of the optimizer
    with Operations() as operations:
        step = next(steps)
    assert {name: operations.counts[name] for name in WAITING | FROM_THE_HOST if operations.counts[name]} == {}
    assert step.result.applied


@pytest.mark.parametrize("training", ["classes"], indirect=True)
def test_a_step_takes_few_operations_besides_those_of_the_network(training, monkeypatch):
    def as_on_a_device(images, plan, finish):
        return finish(_jittered_batch(images, plan))

    monkeypatch.setattr("progeo.training.augmented_encoder.jitter_colors", as_on_a_device)
    steps = two_steps(training)
    next(steps)
    with Operations() as operations:
        next(steps)
    of_network = sum(operations.counts[name] for name in OF_THE_NETWORK)
    assert of_network == 4 * 19 + 2 * 15 + 2 * 8  # of 19 convolutions and norms, 15 activations, 8 poolings
    views = sum(operations.counts[name] for name in VIEWS)
    assert operations.counts.total() - views - of_network < 300


@pytest.mark.gpu
def test_a_step_does_not_wait_for_a_gpu(training):
    steps = two_steps(training)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.result.applied
