"""What other systems do otherwise than Linux is said in the code."""

import ast
import re

from running import ROOT

METHODS = re.compile(r"\.(open|read_text|write_text)\(")
TEXT_MODES = {"r", "w", "a", "x", "rt", "wt", "r+", "w+"}


def lacks_encoding(call):
    """Whether a call of a method opens text in the encoding of the machine, which on Windows is often not UTF-8."""
    if any(word.arg in ("encoding", None) for word in call.keywords):
        return False
    values = [each.value for each in (*call.args, *(word.value for word in call.keywords)) if hasattr(each, "value")]
    match call.func:
        case ast.Attribute(attr="open"):
            return not call.args or any(mode in TEXT_MODES for mode in values if isinstance(mode, str))
        case ast.Attribute(attr="read_text"):
            return not call.args
        case ast.Attribute(attr="write_text"):
            return len(call.args) < 2
    return False


def test_text_is_read_and_written_in_an_encoding_that_the_code_names():
    files = [*(ROOT / "progeo").rglob("*.py"), *(ROOT / "docs").glob("*.py"), *ROOT.glob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items() if METHODS.search(text)}
    calls = [(file, node) for file, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) > 1000
    assert [f"{file}:{node.lineno}" for file, node in calls if lacks_encoding(node)] == []
