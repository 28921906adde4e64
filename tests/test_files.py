import csv

import pyarrow as pa
import pytest

from progeo.files import file_digest, write_csv, write_new_json


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_of_two_writers_of_a_new_file_the_second_fails(tmp_path):
    write_new_json(tmp_path / "a.json", 1)
    with pytest.raises(FileExistsError):
        write_new_json(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert names(tmp_path) == {"a.json"}


def test_a_digest_depends_on_every_byte_of_a_file_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.files._BLOCK_BYTES", 4)
    digests = set()
    for content in (b"", b"abcd", b"abcdabcd", b"abcdabcde", b"abcdXbcde", b"abcdXbcdf"):
        (tmp_path / "x").write_bytes(content)
        digests.add(file_digest(tmp_path / "x"))
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1.jpg", "'=1+1.jpg"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("1;=1+1;a\t@b;c", "1;'=1+1;a\t'@b;c"),
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
