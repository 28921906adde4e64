"""The format of the log on stderr, which the environment holds so that all processes of a command share it."""

import json
import os
from datetime import UTC, datetime
from typing import Any

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
