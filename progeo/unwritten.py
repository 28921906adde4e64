"""The error of a command whose results are complete, but not written to all files that were wanted."""

from typing import Any


class UnwrittenError(ValueError):
    """Raised with the result of a command, which is printed before the message."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
