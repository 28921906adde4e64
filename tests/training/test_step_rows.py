from types import SimpleNamespace

import pytest
import torch

from progeo.engine.loop import StepResult
from progeo.engine.run_folder import RunFolder
from progeo.training.step_rows import StepRows

TASK = SimpleNamespace(metrics={"group": 1}, steps_per_epoch=4, images_per_step=32)
RATES = {"learning_rate": 0.5}


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def rows_of(folder, clock, every):
    return StepRows(TASK, RunFolder(folder), every=every, device=torch.device("cpu"), clock=clock)


def test_a_row_has_the_means_and_the_throughput_of_the_steps_since_the_last(tmp_path):
    clock = Clock()
    rows = rows_of(tmp_path, clock, every=3)
    for step, loss in enumerate((1.0, 2.0, 6.0, 4.0, 9.0, 6.0, 100.0), start=1):
        if step in (1, 5):
            clock.now_s += 50  # of a validation
            rows.begin_epoch()
        clock.now_s += 2
        rows.add(StepResult({"loss": loss}, applied=step != 5), RATES, epoch=1 + step // 5, step=step)
    first, second = RunFolder(tmp_path).read_metrics()
    assert first.pop("memory_bytes") > 10_000_000 < second.pop("memory_bytes")
    common = {"group": 1, "steps_per_epoch": 4, "learning_rate": 0.5, "images_per_s": 16.0, "waited_share": 0.0}
    assert first == {**common, "epoch": 1, "step": 3, "loss": 3.0, "seconds": 56.0}
    assert second == {**common, "epoch": 2, "step": 6, "loss": 5.0, "skipped": 1, "seconds": 112.0}


def test_a_row_has_the_share_of_the_time_that_steps_waited_for_their_batches(tmp_path):
    clock = Clock()

    def drawn():
        for seconds in (3, 1, 2, 0):
            clock.now_s += seconds
            yield seconds

    rows = rows_of(tmp_path, clock, every=2)
    for step, _ in enumerate(rows.timed(drawn()), start=1):
        clock.now_s += 2  # of the step itself
        rows.add(StepResult({"loss": 0.0}, applied=True), RATES, epoch=1, step=step)
    assert [row["waited_share"] for row in RunFolder(tmp_path).read_metrics()] == [0.5, 0.333]


def test_a_resumed_training_continues_the_means_and_the_time(tmp_path):
    clock = Clock()
    RunFolder(tmp_path).append_metrics({"group": 0, "epoch": 1, "step": 9, "seconds": 5.0})
    before = rows_of(tmp_path, clock, every=4)
    for step in range(1, 7):
        clock.now_s += 1
        before.add(StepResult({"loss": float(step)}, applied=True), RATES, epoch=1, step=step)
    after = rows_of(tmp_path, clock, every=4)
    after.load_state_dict(before.state_dict())
    clock.now_s += 10
    after.begin_epoch()
    for step in (7, 8):
        clock.now_s += 4
        after.add(StepResult({"loss": float(step)}, applied=True), RATES, epoch=1, step=step)
    first, second = RunFolder(tmp_path).read_metrics()[1:]
    assert (first["loss"], first["seconds"], first["images_per_s"]) == (2.5, 4.0, 32.0)
    # The times of steps 5 and 6 are gone with their process.
    assert (second["loss"], second["seconds"], second["images_per_s"]) == (6.5, 22.0, 8.0)


def test_steps_without_rows_count_in_the_first_row_of_a_resumed_training(tmp_path):
    before, after = rows_of(tmp_path, Clock(), every=None), rows_of(tmp_path, Clock(), every=4)
    for step in range(1, 5):
        before.add(StepResult({"loss": float(step)}, applied=True), RATES, epoch=1, step=step)
    after.load_state_dict(before.state_dict())
    for step in range(5, 9):
        after.add(StepResult({"loss": float(step)}, applied=True), RATES, epoch=1, step=step)
    assert [row["loss"] for row in RunFolder(tmp_path).read_metrics()] == [4.5]


@pytest.mark.parametrize("every", [None, 3])
def test_no_row_is_written_where_there_is_none_to_write_or_no_folder(tmp_path, every):
    run = None if every else RunFolder(tmp_path)
    rows = StepRows(TASK, run, every=every, device=torch.device("cpu"))
    for step in range(1, 7):
        rows.add(StepResult({"loss": 1.0}, applied=True), RATES, epoch=1, step=step)
    rows.sync()
    assert list(tmp_path.iterdir()) == []
