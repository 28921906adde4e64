import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from progeo.engine.loop import Means, progress_bar, train_epoch
from progeo.engine.stopping import StopRequest


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def parts(accelerator, learning_rate=0.1):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    return weight, accelerator.prepare(torch.optim.SGD([weight], lr=learning_rate))


def bar(accelerator):
    return progress_bar(2, accelerator, images_per_step=1)


def test_the_sum_of_the_terms_is_minimized_and_their_means_returned(accelerator):
    weight, optimizer = parts(accelerator)
    numbers, seen = [], []

    def step(batch):
        seen.append((numbers[-1], batch))
        return {"first": weight[0] * batch, "second": 3 * weight[1]}

    means = train_epoch(
        [[1.0], [2.0]],
        step,
        optimizer,
        accelerator,
        bar=bar(accelerator),
        description="test",
        before_step=numbers.append,
    )
    assert seen == [(0, 1.0), (1, 2.0)]
    # Gradients are (batch, 3): the first step goes from (1, 2) to (0.9, 1.7), the second to (0.7, 1.4).
    torch.testing.assert_close(weight.data, torch.tensor([0.7, 1.4]))
    assert means["first"] == pytest.approx((1.0 * 1 + 0.9 * 2) / 2)
    assert means["second"] == pytest.approx((3 * 2 + 3 * 1.7) / 2)
    assert means["loss"] == pytest.approx(means["first"] + means["second"])


def test_a_batch_in_pieces_takes_the_step_of_the_whole(accelerator):
    targets = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def run(*pieces):
        weight, optimizer = parts(accelerator)
        step = lambda piece: {"squares": (weight[0] - piece).pow(2).mean(), "sum": weight.sum()}  # noqa: E731
        means = train_epoch([pieces] * 2, step, optimizer, accelerator, bar=bar(accelerator), description="test")
        return weight.data, means

    whole, means = run(targets)
    in_pieces, means_of_pieces = run(*targets.split(1))
    torch.testing.assert_close(in_pieces, whole)
    assert means_of_pieces == pytest.approx(means)


def test_the_gradient_is_clipped_to_its_norm(accelerator):
    weight, optimizer = parts(accelerator, learning_rate=1.0)
    train_epoch(
        [[None]],
        lambda batch: {"loss": (weight * torch.tensor([30.0, 40.0])).sum()},
        optimizer,
        accelerator,
        bar=bar(accelerator),
        description="test",
        max_gradient_norm=1.0,
    )
    torch.testing.assert_close(weight.data, torch.tensor([0.4, 1.2]), atol=1e-5, rtol=0)


def test_a_loss_that_is_not_finite_stops_with_its_terms_before_the_step(accelerator):
    weight, optimizer = parts(accelerator)
    with pytest.raises(ValueError, match=r"test, step 2: the loss is not finite \(good .*, bad nan\)"):
        train_epoch(
            [[1.0], [float("nan")]],
            lambda batch: {"good": weight[0], "bad": weight[1] * batch},
            optimizer,
            accelerator,
            bar=bar(accelerator),
            description="test",
        )
    assert torch.isfinite(weight).all()


def test_a_gradient_that_is_not_finite_stops_before_the_step_too(accelerator):
    weight, optimizer = parts(accelerator)
    with pytest.raises(ValueError, match=r"test, step 1: the gradient is not finite \(root 0\)"):
        train_epoch(
            [[None]],
            lambda batch: {"root": (0 * weight).sqrt().sum()},
            optimizer,
            accelerator,
            bar=bar(accelerator),
            description="test",
        )
    assert weight.tolist() == [1.0, 2.0]


def test_a_loss_that_is_not_finite_can_be_left_out_and_counted(accelerator):
    weight, optimizer = parts(accelerator)
    means = train_epoch(
        [[1.0], [float("nan")], [2.0]],
        lambda batch: {"term": weight[0] * batch},
        optimizer,
        accelerator,
        bar=bar(accelerator),
        description="test",
        skip_not_finite=True,
    )
    assert means == pytest.approx({"loss": (1.0 + 1.8) / 2, "term": (1.0 + 1.8) / 2, "skipped": 1})
    assert weight[0].item() == pytest.approx(0.7)


@pytest.fixture
def half_precision(accelerator, monkeypatch):
    """An accelerator that scales gradients as on a GPU, and its optimizer of the weight 1."""
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = AcceleratedOptimizer(torch.optim.SGD([weight], lr=0.1), scaler=accelerator.scaler)
    accelerator._optimizers.append(optimizer)
    return accelerator, weight, optimizer


@pytest.mark.parametrize(
    ("spoil", "skipped"),
    [(lambda loss: loss * torch.nan, 1), (lambda loss: loss + (0 * loss).sqrt(), 0)],
    ids=["the loss", "its gradient"],
)
def test_after_a_skipped_step_of_scaled_gradients_the_next_one_is_taken(half_precision, spoil, skipped):
    accelerator, weight, optimizer = half_precision
    applied = []
    means = train_epoch(
        [[False], [True], [False]],
        lambda is_bad: {"term": spoil(weight[0]) if is_bad else weight[0]},
        optimizer,
        accelerator,
        bar=bar(accelerator),
        description="test",
        skip_not_finite=True,
        after_step=lambda _, was_applied: applied.append(was_applied),
    )
    assert applied == [True, False, True]
    assert weight.item() == pytest.approx(0.8)
    assert accelerator.scaler.get_scale() == 4.0
    assert means.get("skipped", 0) == skipped


def test_the_rest_of_an_epoch_has_the_numbers_and_means_of_the_whole(accelerator):
    def run(batches, means):
        _, optimizer = parts(accelerator)
        numbers = []

        def step(batch):
            return {"term": torch.tensor(float(numbers[-1]), requires_grad=True) * batch}

        return train_epoch(
            batches,
            step,
            optimizer,
            accelerator,
            bar=bar(accelerator),
            description="",
            means=means,
            before_step=numbers.append,
        )

    first = Means()
    run([[1.0], [2.0]], first)
    assert run([[3.0], [4.0]], Means(**vars(first))) == run([[1.0], [2.0], [3.0], [4.0]], Means())


def test_after_a_request_to_stop_the_step_is_finished_first(accelerator):
    weight, optimizer = parts(accelerator)
    stop, done = StopRequest(), []

    def step(batch):
        stop.received = bool(done)
        return {"term": weight[0] * batch}

    def after_step(numbers, applied):
        assert applied
        done.append((numbers["term"], weight[0].item()))
        if stop.received:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_epoch(
            [[1.0], [1.0], [1.0]],
            step,
            optimizer,
            accelerator,
            bar=bar(accelerator),
            description="test",
            stop=stop,
            after_step=after_step,
        )
    assert np.array(done) == pytest.approx(np.array([[1.0, 0.9], [0.9, 0.8]]))


def test_an_epoch_without_a_batch_is_refused(accelerator):
    _, optimizer = parts(accelerator)
    with pytest.raises(ValueError, match="no batch to train on"):
        train_epoch(
            [],
            lambda batch: {},
            optimizer,
            accelerator,
            bar=bar(accelerator),
            description="test",
        )
