"""The format of the log on stderr, which the environment holds so that all processes of a command share it."""

import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

VARIABLE = "PROGEO_LOG_FORMAT"
"""Environment variable with the format, which `--log_format` sets."""
_FORMATS = ("text", "json")


def check_log_format() -> None:
    """Check the environment variable.

    Raises:
        ValueError: it names no format.
    """
    if (name := os.environ.get(VARIABLE, "")) not in ("", *_FORMATS):
        raise ValueError(f"{VARIABLE} (or --log_format) is {' or '.join(_FORMATS)}, got {name!r}.")


def logs_json() -> bool:
    """Return whether each entry of the log is a line of JSON."""
    return os.environ.get(VARIABLE) == "json"


def json_line(level: str, event: str, *, at_s: float | None = None, **fields: Any) -> str:
    """Format an entry of the log as JSON, on one line.

    Args:
        level: `info`, `warning` or `error`.
        event: its text.
        at_s: when it happened, in seconds since 1970; None for now.
        fields: what else is known, see `Progress`.
    """
    time = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    entry = {"time": time.isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
    return json.dumps(entry, allow_nan=False)


class JsonStderr:
    """A stream in place of stderr that makes an entry of each line that others print, such as bars of downloads."""

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath
        """The stream that entries are written to."""
        self._line = ""

    def write(self, text: str) -> int:
        """Write the lines that the text completes."""
        *lines, last = (self._line + text).split("\n")
        self._line = last.rpartition("\r")[2]  # of a bar, its newest state
        for line in lines:
            if event := line.rstrip("\r").rpartition("\r")[2].strip():
                print(json_line("info", event), file=self.beneath, flush=True)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, one after another."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Say that it is no terminal, which colors would be for."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


def print_entry(line: str) -> None:
    """Print a line of `json_line` to stderr."""
    print(line, file=sys.stderr.beneath if isinstance(sys.stderr, JsonStderr) else sys.stderr, flush=True)
