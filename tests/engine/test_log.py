import json
import logging
import sys
import threading
import warnings
from datetime import datetime

import pytest

from progeo.engine.log import LOGGER, start_log
from progeo.log_format import VARIABLE, json_line
from progeo.progress import Progress


@pytest.fixture
def written(monkeypatch, capsys):
    """Reads the entries of a log in JSON."""
    monkeypatch.setenv(VARIABLE, "json")
    start_log(translated=lambda text: text.replace("`out`", "--out"))
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    monkeypatch.undo()
    start_log()


def test_an_entry_has_its_time_level_and_translated_text_on_one_line(written):
    LOGGER.info("`out` is\n%s \x1b[2J", "\xe9")
    LOGGER.warning("careful")
    first, second = written()
    assert (first["level"], first["event"]) == ("info", "--out is\n\xe9 \x1b[2J")
    assert (second["level"], second["event"]) == ("warning", "careful")
    at = datetime.fromisoformat(first["time"])
    assert at.utcoffset().total_seconds() == 0
    assert abs((datetime.now(at.tzinfo) - at).total_seconds()) < 60


def test_an_entry_of_progress_has_its_numbers_beside(written):
    with Progress("adding", total=8, unit="rows", interval_s=1e-9) as progress:
        progress.update(2)
    (first, last) = written()
    assert first["event"].startswith("adding: 2/8 rows, ")
    assert {name: last[name] for name in ("level", "doing", "done", "total", "unit")} == {
        "level": "info",
        "doing": "adding",
        "done": 2,
        "total": 8,
        "unit": "rows",
    }


def test_warnings_of_python_and_of_libraries_are_entries_too(written):
    with warnings.catch_warnings(action="always"):
        logging.captureWarnings(False)
        start_log()  # within this context
        warnings.warn("old weights", UserWarning, stacklevel=1)
    logging.getLogger("some.library").warning("no room")
    first, second = written()
    assert first["level"] == "warning" and "UserWarning: old weights" in first["event"]
    assert (second["level"], second["event"]) == ("warning", "no room")


def test_what_libraries_print_is_an_entry_for_each_line_and_of_a_bar_its_end(written):
    start_log()  # pytest puts another stderr in place after the fixture
    handler = logging.StreamHandler()  # as huggingface_hub has one of its own
    handler.emit(logging.makeLogRecord({"msg": "Retrying in 1s"}))
    sys.stderr.write("\rfile:  50%|#   |\rfile: 10")
    LOGGER.info("between")
    sys.stderr.writelines(["0%|####|\r\n", "\n", "no end"])
    assert [entry["event"] for entry in written()] == ["Retrying in 1s", "between", "file: 100%|####|"]
    assert not sys.stderr.isatty()


def test_exceptions_that_nobody_can_catch_are_entries_too(written):
    class Broken:
        def __del__(self):
            raise RuntimeError("a worker was killed")

    def fail():
        raise RuntimeError("a thread failed")

    Broken()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    first, second = written()
    assert first["level"] == second["level"] == "warning"
    assert "Exception ignored in" in first["event"] and "RuntimeError: a worker was killed" in first["event"]
    assert "Exception in <Thread" in second["event"] and "RuntimeError: a thread failed" in second["event"]


def test_a_log_of_text_leaves_the_warnings_of_others_alone():
    start_log()
    assert not {type(handler) for handler in logging.getLogger().handlers} & {type(LOGGER.handlers[0])}


def test_a_warning_has_no_color_where_there_is_no_terminal(capsys):
    start_log()
    LOGGER.warning("careful")
    assert capsys.readouterr().err == "careful\n"


def test_a_number_that_json_lacks_is_no_entry():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line("info", "training", loss=float("nan"))
