"""The script of the documentation that localizes without this program."""

import json
import re
import runpy
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from indexes import command, localized
from PIL import ExifTags, Image
from running import ROOT

from progeo.cli import main
from progeo.export.weights import load_encoder
from progeo.localization.place_index import open_index

TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
SCRIPT = ROOT / "docs/minimal_localize.py"


def printed(index, model, photos, monkeypatch, capsys):
    """The rows that the script prints."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(index), str(model), *map(str, photos)])
    runpy.run_path(str(SCRIPT))
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def check(rows, results):
    assert [row[0] for row in rows] == [result.query for result in results]
    for (_, latitude, longitude, confidence, path), result in zip(rows, results, strict=True):
        assert path == result.matches[0].path
        assert (float(latitude), float(longitude)) == pytest.approx((result.latitude, result.longitude), abs=1e-6)
        assert float(confidence) == pytest.approx(result.confidence, abs=1e-3)


class Session:
    """What the script uses of onnxruntime, with the encoder of the index."""

    def __init__(self, path):
        self.encoder = load_encoder(path)

    def run(self, _, images):
        (pixels,) = images["images"]
        with torch.no_grad():
            return [self.encoder(self.encoder.preprocess(Image.fromarray(pixels))[None]).numpy()]


def test_it_is_short_and_imports_nothing_of_this_program():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 40
    assert "import progeo" not in text and "from progeo" not in text


def test_it_finds_what_the_program_finds_also_in_parts_and_without_removed_images(
    built, city, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    photos = sorted((built / "photos").iterdir())[::20]
    Image.open(photos[0]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=TURNED)
    photos.append(tmp_path / "turned.png")
    index = shutil.copytree(built / "index", tmp_path / "index")
    before = localized(index, *photos)
    check(printed(index, index, photos, monkeypatch, capsys), before)
    command("index add", cache, folder=city / "test/database", index=index)
    (tmp_path / "removed.txt").write_text(before[0].matches[0].path)
    main(["index", "remove", str(index), "--paths", str(tmp_path / "removed.txt")])
    after = localized(index, *photos)
    assert after[0].matches[0].path != before[0].matches[0].path
    check(printed(index, index, photos, monkeypatch, capsys), after)
    assert len(json.loads((index / "index.json").read_text())["parts"]) == 2


@pytest.mark.parametrize(
    "changed", [{"query_preprocessing": "five_crops"}, {"orientation": "ignore"}, {"of": "classes"}], ids=str
)
def test_an_index_that_it_would_answer_otherwise_than_the_program_is_refused(
    changed, built, tmp_path, monkeypatch, capsys
):
    index = shutil.copytree(built / "index", tmp_path / "index")
    (index / "index.json").write_text(json.dumps(json.loads((index / "index.json").read_text()) | changed))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(SystemExit, match="index must be an index of images, whose photos are resized and turned"):
        printed(index, index, [], monkeypatch, capsys)


def test_positions_leave_as_csv_for_a_device_without_pyarrow(built, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/phones_and_robots.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "city.index").symlink_to(built / "index")
    exec(block, {})
    rows = np.loadtxt(tmp_path / "positions.csv", delimiter=",", skiprows=1)
    images = open_index(built / "index").images.table
    assert rows[:, 0].tolist() == images["latitude"].to_pylist()


@pytest.mark.slow
def test_it_finds_the_same_with_the_exported_file(built, tmp_path, monkeypatch, capsys):
    index, photos = built / "index", sorted((built / "photos").iterdir())[::20]
    main(["export", str(index), "--format", "onnx", "--input", "photos", "--out", str(tmp_path / "onnx")])
    check(printed(index, tmp_path / "onnx/model.onnx", photos, monkeypatch, capsys), localized(index, *photos))
