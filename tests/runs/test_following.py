import json
import os
import socket

from written_runs import write_run

from progeo.locks import locked, may_be_held
from progeo.runs.following import changes, new_rows
from progeo.runs.reading import read_stages


class Clock:
    """Time that passes only while somebody sleeps, and what happens meanwhile."""

    def __init__(self, *events):
        self.now_s, self.events = 0.0, list(events)

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        if self.events:
            self.events.pop(0)()


def append(stage, **row):
    with (stage / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def test_a_run_is_read_again_when_it_changes_until_nobody_has_trained_it_for_long(tmp_path):
    run = write_run(tmp_path / "a")
    lock = locked(run / "stage2")
    lock.__enter__()
    clock = Clock(
        lambda: None,
        lambda: append(run / "stage2", epoch=4, loss=1.5),
        lambda: lock.__exit__(None, None, None),
        lambda: append(run / "stage2", epoch=5, loss=1.25),
    )
    found = [(clock.now_s, len(stages[1].rows)) for stages in changes([run], clock=clock, sleep=clock.sleep)]
    assert found == [(0.0, 10), (6.0, 11), (12.0, 12)]
    assert 60 <= clock.now_s <= 72
    assert [len(stages) for stages in changes([run], clock=clock, sleep=clock.sleep)] == [2]  # nobody trains it


def test_a_lock_may_be_held_by_a_process_that_lives_or_is_elsewhere(tmp_path):
    path = tmp_path / ".lock"
    host = socket.gethostname()
    assert not may_be_held(tmp_path)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    for text, held in (
        ("", True),  # just being taken
        (f"progeo {host} {os.getpid()}\n", True),
        (f"progeo {host} {child}\n", False),
        (f"progeo {host} x\n", False),
        ("progeo elsewhere 1\n", True),
        ("notes of the user", False),
    ):
        path.write_text(text)
        assert may_be_held(tmp_path) is held, text
        assert path.read_text() == text


def test_new_rows_are_lines(tmp_path):
    run = write_run(tmp_path / "a")
    known = {}
    assert len(list(new_rows(read_stages([run]), known))) == 18
    append(run / "stage2", epoch=4, step=14, steps_per_epoch=4, loss=1.25, images_per_s=99.0, memory_bytes=5)
    append(run / "stage1", group=1, epoch=3, image_to_text=0.5)
    assert list(new_rows(read_stages([run]), known)) == [
        "a, stage 1, prompts: group 2, epoch 3, image to text 0.5",
        "a, stage 2, encoder: epoch 4, step 14, loss 1.25, images per s 99",
    ]
