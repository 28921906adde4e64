"""Stopping when asked to: SIGTERM and Ctrl-C wait until the step is done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the process to stop."""

    def __init__(self) -> None:
        self.received = False


@contextmanager
def listening_for_stop() -> Iterator[StopRequest]:
    """Note SIGTERM and Ctrl-C instead of ending at once; the second one ends at once."""
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
