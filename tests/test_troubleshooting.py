"""The messages on docs/troubleshooting.md are messages of the program."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [" ".join(block.split()) for block in re.findall(r"^```output\n(.*?)^```", PAGE, flags=re.M | re.S)]
MIN_LETTERS = 15
"""Letters that a text must have besides its values, to be told from others."""
VALUE = r"%[.\d]*[sdgf]|`[^`]*`"
"""A value in a text of the log, or the name of an argument, which becomes a flag."""


def texts(file: Path) -> Iterator[str]:
    """Yield the texts of a file, with %s in place of the values of f-strings."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(each.value if isinstance(each, ast.Constant) else "%s" for each in node.values)


@cache
def patterns() -> list[re.Pattern[str]]:
    """Compile a pattern for each text of the program, with anything in place of its values."""
    found = {tuple(re.split(VALUE, text)) for file in (ROOT / "progeo").rglob("*.py") for text in texts(file)}
    enough = [parts for parts in found if sum(map(len, parts)) >= MIN_LETTERS]
    return [re.compile(".*".join(map(re.escape, parts))) for parts in enough]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_every_message_is_one_of_the_program(message):
    sentence = re.sub(r"^progeo [a-z ]+: error: ", "", message)
    assert any(pattern.fullmatch(sentence) for pattern in patterns()), sentence
