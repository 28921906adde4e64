"""Logging of a run: to stderr, compatible with progress bars, and to a file."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOGGER = logging.getLogger("progeo")
_YELLOW, _PLAIN = "\033[33m", "\033[0m"


class _BarHandler(logging.StreamHandler):
    """Log handler that prints above an active progress bar."""

    def __init__(self, translated: Callable[[str], str]) -> None:
        super().__init__()
        self.translated = translated

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(BrokenPipeError):  # the reader is gone, as with `2>&1 | head`: keep working
            text = self.translated(self.format(record))
            if record.levelno >= logging.WARNING and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
                text = f"{_YELLOW}{text}{_PLAIN}"
            tqdm.write(text, file=sys.stderr)


def start_log(*, quiet: bool = False, translated: Callable[[str], str] = str) -> None:
    """Log to stderr; processes other than the first log only errors.

    Args:
        quiet: log only warnings.
        translated: rewrites each line, such as names of arguments.
    """
    _set_handlers([_BarHandler(translated)])
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


def _set_handlers(handlers: list[logging.Handler]) -> None:
    for handler in LOGGER.handlers:
        if handler not in handlers:
            handler.close()
    LOGGER.handlers[:] = handlers
    LOGGER.propagate = False
