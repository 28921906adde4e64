import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from progeo.engine.loop import LossNotFinite, Means, StepResult, take_steps
from progeo.engine.stopping import StopRequest


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def parts(accelerator, learning_rate=0.1):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    return weight, accelerator.prepare(torch.optim.SGD([weight], lr=learning_rate))


def test_the_sum_of_the_terms_is_minimized_and_each_step_gives_its_terms(accelerator):
    weight, optimizer = parts(accelerator)
    results = take_steps(
        [[1.0], [2.0]], lambda batch: {"first": weight[0] * batch, "second": 3 * weight[1]}, optimizer, accelerator
    )
    # Gradients are (batch, 3): the first step goes from (1, 2) to (0.9, 1.7), the second to (0.7, 1.4).
    first = next(results).result
    torch.testing.assert_close(weight.data, torch.tensor([0.9, 1.7]))
    assert (first.applied, first.numbers) == (True, {"loss": 7.0, "first": 1.0, "second": 6.0})
    (second,) = results
    torch.testing.assert_close(weight.data, torch.tensor([0.7, 1.4]))
    assert second.result.numbers == pytest.approx({"loss": 6.9, "first": 1.8, "second": 5.1})


def test_a_batch_in_pieces_takes_the_step_of_the_whole(accelerator):
    targets = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def run(*pieces):
        weight, optimizer = parts(accelerator)
        losses = lambda piece: {"squares": (weight[0] - piece).pow(2).mean(), "sum": weight.sum()}  # noqa: E731
        return weight, [step.result.numbers for step in take_steps([pieces] * 2, losses, optimizer, accelerator)]

    whole, numbers = run(targets)
    in_pieces, numbers_of_pieces = run(*targets.split(1))
    torch.testing.assert_close(in_pieces, whole)
    assert all(piece == pytest.approx(each) for piece, each in zip(numbers_of_pieces, numbers, strict=True))


def test_the_gradient_is_clipped_to_its_norm(accelerator):
    weight, optimizer = parts(accelerator, learning_rate=1.0)
    losses = lambda batch: {"loss": (weight * torch.tensor([30.0, 40.0])).sum()}  # noqa: E731
    list(take_steps([[None]], losses, optimizer, accelerator, max_gradient_norm=1.0))
    torch.testing.assert_close(weight.data, torch.tensor([0.4, 1.2]), atol=1e-5, rtol=0)


def test_a_loss_that_is_not_finite_stops_with_its_terms(accelerator):
    weight, optimizer = parts(accelerator)
    losses = lambda batch: {"good": weight[0], "bad": weight[1] * batch}  # noqa: E731
    good, bad = take_steps([[1.0], [float("nan")]], losses, optimizer, accelerator)
    assert good.result.numbers == {"loss": 3.0, "good": 1.0, "bad": 2.0}
    with pytest.raises(LossNotFinite, match=r"^the loss is not finite \(good .*, bad nan\)"):
        _ = bad.result


def test_a_gradient_that_is_not_finite_stops_too(accelerator):
    weight, optimizer = parts(accelerator)
    losses = lambda batch: {"root": (0 * weight).sqrt().sum()}  # noqa: E731
    with pytest.raises(LossNotFinite, match=r"the gradient is not finite \(root 0\)"):
        _ = next(take_steps([[None]], losses, optimizer, accelerator)).result


def test_a_step_that_is_not_finite_can_be_skipped(accelerator):
    weight, optimizer = parts(accelerator)
    losses = lambda batch: {"term": weight[0] * batch}  # noqa: E731
    steps = take_steps([[1.0], [float("nan")], [2.0]], losses, optimizer, accelerator, skip_not_finite=True)
    means = Means()
    assert [(step.result.applied, means.add(step.result)) for step in steps] == [
        (True, None),
        (False, None),
        (True, None),
    ]
    assert means.values() == pytest.approx({"loss": (1.0 + 1.8) / 2, "term": (1.0 + 1.8) / 2, "skipped": 1})
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
    "spoil", [lambda loss: loss * torch.nan, lambda loss: loss + (0 * loss).sqrt()], ids=["the loss", "its gradient"]
)
def test_after_a_skipped_step_of_scaled_gradients_the_next_one_is_taken(half_precision, spoil):
    accelerator, weight, optimizer = half_precision
    losses = lambda is_bad: {"term": spoil(weight[0]) if is_bad else weight[0]}  # noqa: E731
    steps = take_steps([[False], [True], [False]], losses, optimizer, accelerator, skip_not_finite=True)
    assert [step.result.applied for step in steps] == [True, False, True]
    assert weight.item() == pytest.approx(0.8)
    assert accelerator.scaler.get_scale() == 4.0


def test_means_that_were_stored_go_on_as_if_they_had_not_been():
    results = [StepResult({"term": value}, applied=value != 3.0) for value in (1.0, 3.0, 2.0, 7.0)]
    whole, first = Means(), Means()
    for result in results:
        whole.add(result)
    for result in results[:2]:
        first.add(result)
    rest = Means(**vars(first))
    for result in results[2:]:
        rest.add(result)
    assert rest.values() == whole.values() == {"term": 10 / 3, "skipped": 1}
    assert rest.steps == 4


def test_a_request_to_stop_is_known_after_the_step_that_it_arrived_in(accelerator):
    weight, optimizer = parts(accelerator)
    stop = StopRequest()

    def losses(batch):
        stop.received = batch == 2.0
        return {"term": weight[0] * batch}

    steps = take_steps([[1.0], [2.0], [1.0]], losses, optimizer, accelerator, stop=stop)
    assert [(step.result and stop.agreed, round(weight[0].item(), 4)) for step in steps][:2] == [
        (False, 0.9),
        (True, 0.7),
    ]


def test_a_request_to_stop_that_arrives_while_the_step_waits_is_known_after_the_next(accelerator, monkeypatch):
    _, optimizer = parts(accelerator)
    weight = optimizer.param_groups[0]["params"][0]
    stop, reduce = StopRequest(), accelerator.reduce

    def waiting(*arguments):
        stop.received = True
        return reduce(*arguments)

    monkeypatch.setattr(type(accelerator), "num_processes", 2)  # which have to agree
    monkeypatch.setattr(accelerator, "reduce", waiting)
    steps = take_steps([[1.0], [2.0]], lambda batch: {"term": weight[0] * batch}, optimizer, accelerator, stop=stop)
    assert [step.result and stop.agreed for step in steps] == [False, True]
