"""What a run says: on the screen, beside progress bars, and in a file."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LOGGER = logging.getLogger("progeo")


class _BarHandler(logging.StreamHandler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(BrokenPipeError):  # nobody reads any more, such as `2>&1 | head`: the work goes on
            tqdm.write(self.format(record), file=sys.stderr)


def start_log(path: Path | None, *, is_main: bool = True) -> None:
    """Log to the screen and, where `path` is given, to the end of that file; only the main process speaks."""
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
