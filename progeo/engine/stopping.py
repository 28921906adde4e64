"""Stopping on SIGTERM and Ctrl-C: commands clean up and end; training finishes its current step first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, which ends a command as Ctrl-C does."""


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.kind: type[KeyboardInterrupt] = KeyboardInterrupt
        """The exception of the signal that asked."""
        self.received = False
        """Whether this process was asked, at any time."""
        self.agreed = False
        """Whether all processes know of it, and stop after the same step."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """Raise `Terminated` on the first SIGTERM instead of exiting without cleaning up; a second one exits at once."""
    if threading.current_thread() is not threading.main_thread():  # which alone can handle signals
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, before)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def listening_for_stop() -> Iterator[StopRequest]:
    """Record SIGTERM and Ctrl-C in a `StopRequest` instead of exiting; a second such signal exits at once."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        request.received = True
        request.kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
