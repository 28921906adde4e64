import csv
from contextlib import ExitStack

import pyarrow as pa
import pytest

from progeo.files import replacing, write_csv, written_together


@pytest.mark.parametrize("writer", [replacing, written_together])
@pytest.mark.parametrize("name", ["set.arrow", "new/set.arrow"])
def test_what_cannot_be_written_is_named_as_it_was_to_be_called(open_folder, as_nobody, writer, name):
    sentence = rf"^{open_folder}/{name} could not be written: Permission denied$"
    with as_nobody(), pytest.raises(OSError, match=sentence), ExitStack() as stack:
        stack.enter_context(writer(open_folder / name))


def test_a_file_that_cannot_be_finished_is_named_as_it_was_to_be_called(tmp_path):
    path = tmp_path / "set.arrow"
    with pytest.raises(OSError) as error, replacing(path) as temporary:
        temporary.unlink()
    assert str(error.value) == f"{path} could not be written: [Errno 2] No such file or directory: '{path}'"


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_an_error_names_a_file_as_it_would_lie_in_its_folder(tmp_path, kind):
    with pytest.raises(kind) as error, written_together(tmp_path / "model") as folder:
        raise kind(f"{folder / 'model.pt2'} is not written")
    assert str(error.value) == f"{tmp_path}/model/model.pt2 is not written"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1.jpg", "'=1+1.jpg"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("\uff1d1", "'\uff1d1"),
        (pa.scalar("=1"), "'=1"),
        ("-0.1234", "-0.1234"),
        ("+1e-5", "+1e-5"),
        ("-", "'-"),
        (-0.5, "-0.5"),
        (None, ""),
        ("", ""),
        ("photo=1.jpg", "photo=1.jpg"),
    ],
)
def test_what_a_spreadsheet_would_run_is_quoted_on_request(tmp_path, cell, safe):
    for is_safe, expected in ((True, safe), (False, "" if cell is None else str(cell))):
        write_csv(tmp_path / "a.csv", [[cell, 1]], spreadsheet_safe=is_safe)
        with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
            assert list(csv.reader(stream)) == [[expected, "1"]]
