import logging
import os
import sys
import termios
import time
from contextlib import contextmanager

import pytest
from running import available

from progeo.log_format import VARIABLE
from progeo.progress import Progress, duration, followed, phase


@pytest.fixture
def lines():
    """What is logged during the test."""
    with listening(logging.LogRecord.getMessage) as found:
        yield found


@pytest.fixture
def fields(monkeypatch):
    """What entries of JSON have besides their text."""
    monkeypatch.setenv(VARIABLE, "json")
    with listening(lambda record: record.progress) as found:
        yield found


@contextmanager
def listening(of_record):
    logger, found = logging.getLogger("progeo"), []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(of_record(record))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


@contextmanager
def terminal(monkeypatch):
    """A terminal as stderr; yields a function that reads what it got."""
    main, other = os.openpty()
    termios.tcsetwinsize(other, (24, 120))
    with os.fdopen(other, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield lambda: "".join(iter(lambda: available(main), ""))
    os.close(main)


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


def test_a_line_is_logged_when_the_last_was_long_enough_ago(lines):
    clock = Clock()
    how = {"total": 1000, "later": 3000, "images_per_step": 32, "interval_s": 30.0}
    with Progress("stage 2, epoch 1/4", **how, clock=clock) as progress:
        for seconds, loss in ((10, 4.0), (19, 3.0), (1, 2.5), (29, 2.0), (2, 1.0)):
            clock.now_s += seconds
            progress.show({"loss": loss, "skipped": 1})
            progress.update(10)
    # After 30 s: 30 steps, 1 of 32 images in a second, 970 left and 3970. After 31 more: 20 steps.
    assert lines == [
        "stage 2, epoch 1/4: step 30/1,000, loss 2.500, skipped 1, 32 images/s, 16 min 10 s left, "
        "1 h 6 min with all that follows",
        "stage 2, epoch 1/4: step 50/1,000, loss 1.000, skipped 1, 21 images/s, 24 min 32 s left, "
        "1 h 42 min with all that follows",
    ]


def test_images_are_counted_from_those_that_were_done_before(lines):
    clock = Clock()
    with Progress("descriptors", total=10_000, done=9_000, interval_s=5.0, clock=clock) as progress:
        clock.now_s += 5
        progress.update(12)
        progress.describe("waiting")
        clock.now_s += 5
        progress.update(0)  # at this rate it would never end
    assert lines == [
        "descriptors: 9,012/10,000 images, 2.4 images/s, 6 min 52 s left",
        "waiting: 9,012/10,000 images, 0.0 images/s",
    ]


def test_without_a_total_no_time_is_left(lines):
    clock = Clock()
    progress = Progress("finding images", interval_s=1.0, clock=clock)
    clock.now_s += 2
    progress.update(5000)
    assert lines == ["finding images: 5,000 images, 2,500 images/s"]


def test_what_is_short_or_hidden_logs_nothing(lines):
    clock = Clock()
    shown, hidden = Progress("short", clock=clock), Progress("hidden", clock=clock, hidden=True)
    clock.now_s += 29.9
    shown.update()
    clock.now_s += 100
    hidden.update()
    assert lines == []


def test_a_terminal_shows_a_bar_and_no_lines(lines, monkeypatch):
    clock = Clock()
    with terminal(monkeypatch) as shown, Progress("toy city", total=4, clock=clock) as progress:
        clock.now_s += 60
        progress.show({"loss": 0.25})
        progress.update(4)
        progress.bar.refresh()
        text = shown()
    assert "toy city: 100%" in text and "4/4" in text and "loss=0.250" in text
    assert lines == []


@pytest.mark.parametrize("hidden_by", ["json", "quiet"])
def test_neither_json_nor_a_quiet_log_has_a_bar_on_a_terminal(hidden_by, lines, monkeypatch):
    if hidden_by == "json":
        monkeypatch.setenv(VARIABLE, "json")
    else:
        logging.getLogger("progeo").setLevel(logging.WARNING)
    with terminal(monkeypatch) as shown:
        with Progress("toy city", total=4, leave=True) as progress:
            progress.update(4)
        print("the end", file=sys.stderr, flush=True)
        assert shown() == "the end\r\n"


def test_entries_of_json_are_numbers_and_the_last_one_is_of_all(fields):
    clock = Clock()
    with Progress("stage 2", total=10, later=20, images_per_step=32, clock=clock) as progress:
        for seconds in (1, 1, 2):
            clock.now_s += seconds
            progress.show({"loss": float("nan"), "skipped": 1})
            progress.update(3)
    common = {"doing": "stage 2", "total": 10, "unit": "steps", "numbers": {"loss": None, "skipped": 1}}
    assert fields == [
        {**common, "done": 6, "rate": 3.0, "left_s": 1.3, "left_with_later_s": 8.0},
        {**common, "done": 9, "rate": 1.5, "left_s": 0.7, "left_with_later_s": 14.0},
        {**common, "done": 9, "rate": 2.25, "left_s": 0.4, "left_with_later_s": 9.3},
    ]


def test_a_short_job_or_one_that_fails_has_no_last_entry(fields):
    clock = Clock()
    with Progress("short", total=1, clock=clock) as progress:
        clock.now_s += 1.9
        progress.update()
    with pytest.raises(KeyError), Progress("failing", unit="rows", clock=clock) as progress:
        clock.now_s += 2
        progress.update(8)
        raise KeyError
    assert fields == [{"doing": "failing", "done": 8, "total": None, "unit": "rows", "rate": 4.0, "left_s": None}]


def test_items_are_followed_by_their_sizes(lines, monkeypatch):
    monkeypatch.setattr("progeo.progress.INTERVAL_S", 1e-9)
    assert list(followed(["ab", "cde"], "adding", total=5, size=len, unit="rows")) == ["ab", "cde"]
    assert [line.partition(" rows,")[0] for line in lines] == ["adding: 2/5", "adding: 5/5"]


def test_a_phase_shows_that_time_passes(lines, monkeypatch):
    monkeypatch.setattr("progeo.progress._TICK_S", 0.01)
    with terminal(monkeypatch) as shown:
        with phase("training the index"):
            time.sleep(0.05)
        text = shown()
    assert "training the index [00:00]" in text and lines == []
    monkeypatch.setattr("progeo.progress.INTERVAL_S", 0.02)
    with phase("training the index"):
        time.sleep(0.1)
    assert lines[0] == "training the index: 0 s so far"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_460, "1 d"),
    ],
)
def test_durations_have_two_units_at_most(seconds, words):
    assert duration(seconds) == words
