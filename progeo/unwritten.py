"""Errors of commands that have a result all the same, which is printed before the message."""

from typing import Any


class ErrorWithResult(ValueError):
    """Raised with the result of a command."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class UnwrittenError(ErrorWithResult):
    """The result is complete, but not written to all files that were wanted."""


class ProblemsError(ErrorWithResult):
    """The result says what is wrong."""
