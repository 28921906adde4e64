"""The trainer, on a task of a few numbers: what it does after a step and an epoch, and that it can stop anywhere."""

import json

import pytest
import torch
from running import files_in, metrics_of
from torch import nn

from progeo.engine.accelerator import start_accelerator
from progeo.engine.checkpoint import finished_checkpoints, load_checkpoint, numbers_of, save_checkpoint
from progeo.engine.loop import LossNotFinite
from progeo.engine.run_folder import RunFolder, is_done
from progeo.training import trainer as trainer_module
from progeo.training.options import TrainerOptions
from progeo.training.task import Measures, Task
from progeo.training.trainer import Trainer, check_checkpoints

STEPS = 3


class Toy(Task):
    """A weight that is pulled to numbers by squares, a batch norm, and validations as told."""

    def __init__(self, accelerator, measured=(), spoiled=()):
        self.model = nn.ModuleDict({"weight": nn.Linear(1, 1, bias=False), "norm": nn.BatchNorm1d(1)})
        nn.init.ones_(self.model["weight"].weight)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW([{"params": list(self.model.parameters()), "lr": 0.1, "base_lr": 0.1}])
        )
        self.steps_per_epoch, self.images_per_step = STEPS, 4
        self.measured, self.spoiled = list(measured), spoiled
        self.rates, self.begun, self.kept, self.drawn = [], 0, [], 0

    def name(self, epoch):
        return f"toy, epoch {epoch + 1}"

    def batches(self, epoch, *, first_step):
        for step in range(first_step, STEPS):
            self.drawn += 1
            yield [torch.randn(4, 1, generator=torch.Generator().manual_seed(100 * epoch + step))]

    def losses(self, piece):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        noise = torch.rand(1)  # as of stochastic depth
        loss = (self.model["norm"](self.model["weight"](piece)) - 1 - noise).pow(2).mean()
        return {"squares": loss * torch.nan if self.drawn in self.spoiled else loss}

    def begin(self):
        self.begun += 1

    def validate(self, model):
        if not self.measured:
            return None
        return Measures({"other": 0.0, "score": self.measured.pop(0)}, primary="score")

    def keep(self, folder, model, *, epoch, values, terms):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps({"epoch": epoch, **values}))
        self.kept.append((folder.name, epoch, model))

    def state_dict(self):
        return {"model": self.model.state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.drawn = state["drawn"]


@pytest.fixture
def build(tmp_path):
    def built(name="run", measured=(), spoiled=(), checkpoint_minutes=0, steps_ahead=None, **options):
        accelerator = start_accelerator("no")
        run = RunFolder(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        options = TrainerOptions(**{"epochs": 4, "checkpoint_every": 1, **options})
        task = Toy(accelerator, measured, spoiled)
        how = {"checkpoints": run.checkpoints, "checkpoint_minutes": checkpoint_minutes}
        trainer = Trainer(task, options, run, **how, seed=5, accelerator=accelerator)
        if steps_ahead is not None:
            trainer.steps_ahead = steps_ahead
        return trainer

    return built


def trained(trainer):
    trainer.resume()
    return list(trainer.epochs())


def last_state(trainer):
    return load_checkpoint(finished_checkpoints(trainer.checkpoints)[-1])


def flat(state, prefix=""):
    for name, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    ("options", "seen"),
    [({}, ("tf32", "tf32", False)), ({"tf32": False, "cudnn_benchmark": True}, ("ieee", "ieee", True))],
)
def test_products_are_faster_or_exact_in_steps_and_as_always_in_validation(build, options, seen):
    trainer, cudnn, found = build(epochs=2, **options), torch.backends.cudnn, {}

    def noting(when, called):
        def call(argument):
            products = (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark)
            found.setdefault(when, set()).add(products)
            return called(argument)

        return call

    before = (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark)
    trainer.task.losses = noting("step", trainer.task.losses)
    trainer.task.validate = noting("validation", trainer.task.validate)
    trained(trainer)
    assert found == {"step": {seen}, "validation": {before}}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=() if step in (1, 4, 6, 9, 11) else pytest.mark.slow) for step in range(1, 4 * STEPS)],
)
def test_a_training_that_ends_in_any_step_goes_on_to_the_same_bits(build, step):
    how = {"schedule": "plateau", "decay_epochs": 1, "ema_decay": 0.5, "keep_every": 2, "log_every": 5}
    how["steps_ahead"] = step % 2
    scores = [1.0, 3.0, 2.0, 2.0]
    whole = build("whole", scores, **how)
    terms = trained(whole)
    killed = build("killed", scores, **how)
    losses = killed.task.losses

    def losses_until(piece):
        if killed.task.drawn > step:
            raise Killed
        return losses(piece)

    killed.task.losses = losses_until
    with pytest.raises(Killed):
        trained(killed)
    rest = build("killed", scores[step // STEPS :], **how)
    done = numbers_of(finished_checkpoints(rest.checkpoints)[-1])
    rest.run.keep_metrics(lambda row: is_done(row, *done))
    assert trained(rest) == terms[step // STEPS :]
    assert dict(flat(last_state(rest))) == dict(flat(last_state(whole)))
    assert rest.task.begun == 0 and whole.task.begun == 1
    assert (rest.best, rest.best_epoch) == (3.0, 2)
    assert files_in(rest.run.path) == files_in(whole.run.path)
    rows = metrics_of(whole.run.path)
    assert metrics_of(rest.run.path) == rows
    assert [row.get("step", "epoch") for row in rows] == ["epoch", 5, "epoch", "epoch", 10, "epoch"]


def test_a_checkpoint_from_before_there_were_rows_of_steps_is_resumed(build):
    terms = trained(build("whole"))
    trained(build("begun", epochs=2))
    path = finished_checkpoints(build("begun").checkpoints)[-1]
    state = load_checkpoint(path)
    assert state.pop("rows")["steps"] == 2 * STEPS
    save_checkpoint(path.parent, path.name, state)
    assert trained(build("begun")) == terms[2:]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"schedule": "step", "decay_epochs": 2, "decay_factor": 0.1}, [0.1, 0.1, 0.01, 0.01]),
        # The second and third epoch are no better than the first, the fourth is.
        ({"schedule": "plateau", "decay_epochs": 1, "decay_factor": 0.5}, [0.1, 0.1, 0.05, 0.025]),
        ({"schedule": "plateau", "decay_epochs": 2, "decay_factor": 0.5}, [0.1, 0.1, 0.1, 0.05]),
        ({"schedule": "cosine_epochs"}, [0.1, 0.085355, 0.05, 0.014645]),
    ],
)
def test_learning_rates_follow_epochs_and_validations(build, how, expected):
    trainer = build(measured=[5.0, 5.0, 4.0, 6.0], **how)
    trained(trainer)
    assert trainer.task.rates[::STEPS] == trainer.task.rates[2::STEPS] == pytest.approx(expected, rel=1e-4)


def test_a_line_falls_over_its_steps_or_over_all(build):
    for decay_steps, over in ((6, 6), (None, 4 * STEPS)):
        trainer = build(f"over_{over}", schedule="linear", end_factor=0.2, decay_steps=decay_steps, epochs=4)
        trained(trainer)
        expected = [0.1 * (1 - 0.8 * min(1, step / over)) for step in range(4 * STEPS)]
        assert trainer.task.rates == pytest.approx(expected)


def of_two_groups(trainer, losses):
    """A trainer whose epochs are of two groups in turn and have the given mean losses."""
    task = trainer.task
    task.group_of = lambda epoch: epoch % 2

    def told(piece):
        task.rates.append(task.optimizer.param_groups[0]["lr"])
        return {"told": losses[(task.drawn - 1) // STEPS] + 0 * task.model["weight"](piece).mean()}

    task.losses = told
    return trainer


PLATEAU = {"schedule": "loss_plateau", "decay_epochs": 2, "decay_factor": 0.1, "checkpoint_every": STEPS}
LOSSES = [5, 9, 4, 8, 7, 8, 3, 9, 6, 6, 6]
"""Of eleven epochs. Epochs 5, 6, 8, 9 and 11 are not below all former ones of their group."""


def test_rates_fall_when_losses_do_not_fall_within_their_group(build):
    trainer = of_two_groups(build(**PLATEAU, epochs=11), LOSSES)
    trained(trainer)
    rates = [0.1] * 6 + [0.01] * 3 + [0.001] * 2
    assert trainer.task.rates[::STEPS] == trainer.task.rates[2::STEPS] == pytest.approx(rates)
    assert (trainer.lowest_losses, trainer.decays, trainer.epochs_since_lower) == ({0: 3.0, 1: 6.0}, 2, 1)


@pytest.mark.parametrize("epoch", [4, 5, 8])
def test_a_wait_for_lower_losses_goes_on_after_any_epoch(build, epoch):
    whole = of_two_groups(build("whole", **PLATEAU, epochs=11), LOSSES)
    trained(whole)
    trained(of_two_groups(build("stopped", **PLATEAU, epochs=epoch), LOSSES))
    rest = of_two_groups(build("stopped", **PLATEAU, epochs=11), LOSSES)
    trained(rest)
    assert dict(flat(last_state(rest))) == dict(flat(last_state(whole)))
    assert rest.task.rates == whole.task.rates[epoch * STEPS :]


def test_training_ends_when_the_rate_is_below_its_minimum(build):
    for minimum, epochs in ((0.001, 7), (0.0011, 5), (0.011, 3)):
        still = of_two_groups(build(str(minimum), **PLATEAU, epochs=9, min_learning_rate=minimum), [5, 6] * 9)
        assert len(trained(still)) == epochs + 1
        again = of_two_groups(build(str(minimum), **PLATEAU, epochs=9, min_learning_rate=minimum), [5, 6] * 9)
        assert trained(again) == []
        reason = f"the learning rate fell below training.min_learning_rate after epoch {epochs + 1}"
        assert (reason in again.outcome()) == (epochs < 8)
    warm = of_two_groups(build("warm", epochs=2, warmup_steps=5, min_learning_rate=0.1), [5, 6])
    assert len(trained(warm)) == 2


def test_an_epoch_whose_rate_falls_below_the_minimum_is_finished_after_a_stop_too(build):
    how = {"schedule": "cosine", "min_learning_rate": 0.07}  # passed within the second epoch
    whole, killed = build("whole", **how), build("killed", **how)
    losses = killed.task.losses

    def losses_until(piece):
        if killed.task.drawn > 5:
            raise Killed
        return losses(piece)

    terms = trained(whole)
    killed.task.losses = losses_until
    with pytest.raises(Killed):
        trained(killed)
    rest = build("killed", **how)
    assert trained(rest) == terms[1:] and len(terms) == 2
    assert dict(flat(last_state(rest))) == dict(flat(last_state(whole)))


def test_a_group_of_parameters_can_keep_its_rate(build):
    trainer = build(schedule="step", decay_epochs=1, epochs=3)
    group = trainer.task.optimizer.param_groups[0]
    group["constant"] = True
    trained(trainer)
    assert set(trainer.task.rates) == {0.1}


def test_training_stops_after_epochs_without_a_better_primary_measure(build):
    trainer = build(measured=[-7.0, -5.0, -6.0, -5.0], patience=2, epochs=9)
    assert len(trained(trainer)) == 4
    assert [(name, epoch) for name, epoch, _ in trainer.task.kept] == [("best", 1), ("best", 2)]
    assert trainer.outcome() == [f"best val score -5.0 in epoch 2, encoder in {trainer.run.path}/best"]
    assert json.loads((trainer.run.path / "best/model.json").read_text())["val score"] == -5.0


def test_a_training_killed_before_it_removed_old_checkpoints_removes_them_when_resumed(build):
    first = build(epochs=1, keep_checkpoints=9)
    list(first.epochs())
    assert len(finished_checkpoints(first.checkpoints)) > 2
    newest = build(epochs=1, keep_checkpoints=2).resume()
    assert finished_checkpoints(first.checkpoints)[1:] == [newest]


def test_checkpoints_at_the_end_of_epochs_are_written_once_their_minutes_have_passed(build):
    trainer, found = build(checkpoint_minutes=10, checkpoint_every=STEPS), []
    for _ in trainer.epochs():
        trainer.writer.wait()
        found.append([path.name for path in finished_checkpoints(trainer.checkpoints)])
        trainer._saved_at_s -= 300  # as if an epoch took five minutes
    assert found == [[], [], ["epoch_000003_step_000000"], ["epoch_000003_step_000000"]]


def test_a_training_killed_long_after_its_checkpoint_ends_with_the_same_files(build):
    scores = [1.0, 3.0, 2.0, 4.0]
    how = {"checkpoint_every": STEPS, "keep_every": 2}
    whole, killed = build("whole", scores, **how), build("killed", scores, **how)
    terms = trained(whole)
    for epoch, _ in enumerate(killed.epochs()):
        killed.checkpoint_minutes = 10  # after the first epoch, whose checkpoint is the last
        if epoch == 2:
            break
    rest = build("killed", scores[1:], **how)
    rest.run.keep_metrics(lambda row: is_done(row, *numbers_of(finished_checkpoints(rest.checkpoints)[-1])))
    assert trained(rest) == terms[1:]
    assert dict(flat(last_state(rest))) == dict(flat(last_state(whole)))
    assert metrics_of(rest.run.path) == metrics_of(whole.run.path)
    for kept in ("best/model.json", "epochs/epoch_000002/model.json", "epochs/epoch_000004/model.json"):
        assert (rest.run.path / kept).read_bytes() == (whole.run.path / kept).read_bytes()


def test_the_averaged_network_is_validated_and_kept(build):
    trainer = build(measured=[1.0], ema_decay=0.75, epochs=1)
    weight, seen = trainer.task.model["weight"].weight, []
    trainer.task.optimizer.optimizer.register_step_post_hook(lambda *_: seen.append(weight.item()))
    trained(trainer)
    (_, _, kept), average = trainer.task.kept[0], seen[0]
    for value in seen[1:]:
        average = 0.75 * average + 0.25 * value
    assert kept["weight"].weight.item() == pytest.approx(average)


def test_a_skipped_step_changes_neither_batch_norm_nor_average_and_is_counted(build):
    trainer = build(spoiled=(2,), skip_not_finite=True, ema_decay=0.5, epochs=1)
    (terms,) = trained(trainer)
    assert terms["skipped"] == 1
    assert trainer.averaged.n_averaged == trainer.task.model["norm"].num_batches_tracked == STEPS - 1


def test_steps_that_are_skipped_in_a_row_end_the_training(build, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_SKIPPED_IN_A_ROW", STEPS + 1)  # over the end of an epoch
    spoiled = range(2, STEPS + 3)
    with pytest.raises(LossNotFinite, match=rf"^toy, epoch 2, step 2: {STEPS + 1} steps in a row had a loss") as caught:
        trained(build(spoiled=spoiled, skip_not_finite=True))
    assert "checkpoint is" in str(caught.value)
    with_a_good_one = [step for step in range(2, 2 * STEPS + 1) if step != STEPS + 1]
    trained(build("other", spoiled=with_a_good_one, skip_not_finite=True, epochs=2))


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_a_loss_that_is_not_finite_names_the_step_and_the_newest_checkpoint(build, steps_ahead):
    trainer = build(spoiled=(3,), steps_ahead=steps_ahead)
    newest = trainer.checkpoints / "epoch_000000_step_000002"
    with pytest.raises(LossNotFinite, match=rf"^toy, epoch 1, step 3: the loss is .*checkpoint is {newest}\.$"):
        trained(trainer)
    with pytest.raises(LossNotFinite, match=r"step 1: .*There is no checkpoint yet\.$"):
        trained(build("other", spoiled=(1,), checkpoint_every=STEPS, steps_ahead=steps_ahead))
    assert trainer.task.drawn == 3


def test_a_loss_that_is_not_finite_is_told_though_the_next_step_failed_for_it(build):
    trainer = build(spoiled=(2,), checkpoint_every=STEPS, steps_ahead=1)
    losses = trainer.task.losses

    def checked(piece):
        if trainer.task.model["weight"].weight.isnan().any():
            raise ValueError("descriptors are not finite")
        return losses(piece)

    trainer.task.losses = checked
    with pytest.raises(LossNotFinite, match=r"^toy, epoch 1, step 2: the loss is not finite"):
        trained(trainer)


def test_numbers_that_are_read_after_the_next_step_are_those_that_are_read_at_once(build):
    how = {"checkpoint_every": 2, "log_every": 2, "ema_decay": 0.5, "warmup_steps": 5}
    runs = [build(str(steps_ahead), steps_ahead=steps_ahead, **how) for steps_ahead in (0, 1)]
    logged = []
    for run in runs:
        run.accelerator.log = lambda values, step, into=logged: into.append((step, values))
    assert trained(runs[0]) == trained(runs[1])
    assert dict(flat(last_state(runs[0]))) == dict(flat(last_state(runs[1])))
    assert metrics_of(runs[0].run.path) == metrics_of(runs[1].run.path)
    assert logged[: len(logged) // 2] == logged[len(logged) // 2 :]
    assert [step for step, _ in logged] == [*range(1, 4 * STEPS + 1)] * 2


def test_rows_of_steps_on_a_cpu_have_the_time_of_these_steps(build):
    trainer = build(epochs=2, log_every=1, checkpoint_every=STEPS)
    trainer.rows.clock = lambda: 2.0 * len(trainer.task.rates)  # as if a step took two seconds
    trained(trainer)
    assert [row["images_per_s"] for row in trainer.run.read_metrics() if "step" in row] == [2.0] * (2 * STEPS)


def test_a_checkpoint_of_another_version_is_refused(build):
    trainer = build(epochs=1)
    trained(trainer)
    again = build(epochs=2)
    again.task.load_state_dict = lambda state: state["pooling"]
    with pytest.raises(ValueError, match=r"step_000000 has no 'pooling': it is of another version"):
        again.resume()
    changed = build(epochs=2)
    changed.task.model["weight"] = nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match=r"step_000000 does not fit \(.* size mismatch .*\): it is of another version"):
        changed.resume()


def renamed(state, name, value):
    """Change a value of a nested state by the names that lead to it."""
    *names, last = name.split()
    for each in names:
        state = state[int(each) if each.isdigit() else each]
    state[last] = value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epoch", "1", "expected int, got '1' in epoch"),
        ("epochs_since_best", -1, "expected int >= 0, got -1 in epochs_since_best"),
        ("terms", [1.0], r"expected object, got \[1.0\] in terms"),
        ("lowest_losses", {0: None}, "expected float"),
        ("means", {"steps": 0, "skipped": 0, "sums": {"loss": "x"}}, "expected float"),
        ("optimizer param_groups 0 lr", "fast", "lr of the optimizer is 'fast'"),
        (
            "optimizer state 0 exp_avg",
            torch.ones(7),
            "exp_avg of parameter 0 of the optimizer is no tensor",
        ),
        ("optimizer state 0 exp_avg", "x", "exp_avg of parameter 0 of the optimizer is no tensor"),
        ("optimizer state", 3, "'int' object has no attribute 'items'"),
        ("task model", None, "Expected state_dict to be dict-like"),
    ],
)
def test_a_checkpoint_with_values_of_other_types_is_refused_by_name(build, name, value, words):
    trainer = build(epochs=1)
    trained(trainer)
    state = last_state(trainer)
    renamed(state, name, value)
    save_checkpoint(trainer.checkpoints, "epoch_000001_step_000000", state)
    with pytest.raises(ValueError, match=rf"checkpoint \S+/epoch_000001_step_000000 does not fit \(.*{words}"):
        build(epochs=2).resume()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("epoch_000001_step_000000", "has no 'averaged': it is of another version"),
        ("group_0/epoch_000001", "has no step in its name: it is of another version"),
    ],
)
def test_checkpoints_of_another_version_are_found_before_anything_is_written(tmp_path, name, sentence):
    folder, _, last = f"checkpoints/{name}".rpartition("/")
    save_checkpoint(tmp_path / folder, last, {"epoch": 1})
    with pytest.raises(ValueError, match=sentence):
        check_checkpoints(RunFolder(tmp_path))


def test_what_an_earlier_version_left_of_a_finished_group_does_not_matter(tmp_path):
    run = RunFolder(tmp_path)
    save_checkpoint(run.group_checkpoints(0), "epoch_000001_step_000000", {"epoch": 1}).rename(
        run.group_checkpoints(0) / "epoch_000001"
    )
    run.group_file(0).touch()
    check_checkpoints(run)


def test_an_epoch_without_a_batch_is_refused(build):
    trainer = build()
    trainer.task.batches = lambda epoch, *, first_step: []
    with pytest.raises(ValueError, match="toy, epoch 1: there is no batch to train on"):
        trained(trainer)
