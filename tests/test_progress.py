import logging
import os
import sys
import termios

import pytest

from progeo.progress import Progress, duration


@pytest.fixture
def lines():
    """What is logged during the test."""
    logger, found = logging.getLogger("progeo"), []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


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
    main, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    clock = Clock()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("toy city", total=4, clock=clock) as progress:
            clock.now_s += 60
            progress.show({"loss": 0.25})
            progress.update(4)
            progress.bar.refresh()
        shown = os.read(main, 10_000).decode()
    os.close(main)
    assert "toy city: 100%" in shown and "4/4" in shown and "loss=0.250" in shown
    assert lines == []


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
