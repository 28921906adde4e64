"""Logging of a run: to stderr, as text that goes with progress bars or as JSON, and to a file."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from tqdm import tqdm

from progeo.log_format import JsonStderr, json_line, logs_json, print_entry
from progeo.terminal import has_colors

LOGGER = logging.getLogger("progeo")
_YELLOW, _PLAIN = "\033[33m", "\033[0m"
_TEXT_HOOKS = sys.unraisablehook, threading.excepthook
"""What prints exceptions that nobody can catch, unless the log is JSON."""


class _StderrHandler(logging.StreamHandler):
    """Log handler that prints text above an active progress bar, or lines of JSON."""

    def __init__(self, translated: Callable[[str], str]) -> None:
        super().__init__()
        self.translated = translated

    def emit(self, record: logging.LogRecord) -> None:
        text = self.translated(self.format(record))
        with suppress(BrokenPipeError):  # the reader is gone, as with `2>&1 | head`: keep working
            if logs_json():
                fields = getattr(record, "progress", {})
                print_entry(json_line(record.levelname.lower(), text, at_s=record.created, **fields))
                return
            if record.levelno >= logging.WARNING and has_colors(sys.stderr):
                text = f"{_YELLOW}{text}{_PLAIN}"
            tqdm.write(text, file=sys.stderr)


def start_log(*, quiet: bool = False, translated: Callable[[str], str] = str) -> None:
    """Log to stderr; processes other than the first log only errors.

    Args:
        quiet: log only warnings.
        translated: rewrites each line, such as names of arguments.
    """
    _set_handlers([handler := _StderrHandler(translated)])
    _log_of_libraries([handler] if logs_json() else [])
    is_main = os.environ.get("RANK", "0") == "0"
    LOGGER.setLevel(logging.ERROR if not is_main else logging.WARNING if quiet else logging.INFO)


def log_to_file(path: Path) -> None:
    """Log to a file too, appending to it, in place of a file of an earlier run."""
    stop_log_file()
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _set_handlers([*LOGGER.handlers, to_file])


def stop_log_file() -> None:
    """Stop logging to a file."""
    _set_handlers([handler for handler in LOGGER.handlers if not isinstance(handler, logging.FileHandler)])


def stop_log() -> None:
    """Stop logging to a file, and what libraries warn of."""
    stop_log_file()
    _log_of_libraries([])


def _log_of_libraries(handlers: list[logging.Handler]) -> None:
    """Log what Python and libraries warn of or print with these handlers; without any, it is printed as text.

    This includes exceptions that nobody can catch: of threads, and where objects are deleted.
    """
    if isinstance(sys.stderr, JsonStderr):
        sys.stderr = sys.stderr.beneath
    if handlers:
        sys.stderr = cast(TextIO, JsonStderr(sys.stderr))
    logging.captureWarnings(bool(handlers))
    sys.unraisablehook, threading.excepthook = (_log_unraisable, _log_of_thread) if handlers else _TEXT_HOOKS
    others = [handler for handler in logging.getLogger().handlers if not isinstance(handler, _StderrHandler)]
    logging.getLogger().handlers[:] = [*others, *handlers]


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    _log_uncaught(f"{unraisable.err_msg or 'Exception ignored in'} {unraisable.object!r}", unraisable.exc_value)


def _log_of_thread(arguments: threading.ExceptHookArgs) -> None:
    _log_uncaught(f"Exception in {arguments.thread!r}", arguments.exc_value)


def _log_uncaught(where: str, error: BaseException | None) -> None:
    LOGGER.warning("%s: %s", where, "".join(traceback.format_exception(error)) if error else "unknown")


def _set_handlers(handlers: list[logging.Handler]) -> None:
    for handler in LOGGER.handlers:
        if handler not in handlers:
            handler.close()
    LOGGER.handlers[:] = handlers
    LOGGER.propagate = False
