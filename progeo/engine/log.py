"""Logging of a run: to stderr, compatible with progress bars, and to a file."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOGGER = logging.getLogger("progeo")


class _BarHandler(logging.StreamHandler):
    """Log handler that prints above an active progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(BrokenPipeError):  # the reader is gone, as with `2>&1 | head`: keep working
            tqdm.write(self.format(record), file=sys.stderr)


def start_log(path: Path | None, *, is_main: bool = True) -> None:
    """Log to stderr and, if `path` is given, append to that file; other processes log only errors, to stderr."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        handler.close()
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if is_main else logging.ERROR)
    LOGGER.addHandler(_BarHandler())
    if path is not None and is_main:
        to_file = logging.FileHandler(path, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        LOGGER.addHandler(to_file)
