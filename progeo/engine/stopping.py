"""Graceful stopping: on SIGTERM or Ctrl-C the current step is finished first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.received = False
        """Whether this process was asked, at any time."""
        self.agreed = False
        """Whether all processes know of it, and stop after the same step."""


@contextmanager
def listening_for_stop() -> Iterator[StopRequest]:
    """Record SIGTERM and Ctrl-C in a `StopRequest` instead of exiting; a second such signal exits at once."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        request.received = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
