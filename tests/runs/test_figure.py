import sys

import pytest
from PIL import Image

from progeo.pages.charts import Chart, Series
from progeo.runs.figure import check_figure, write_figure

NAMES = ("a $x^2$ <script>", "_hidden\u202e", "数")
SECTIONS = {
    "Stage 1": [Chart("Loss", "step", "loss", [Series(name, [1, 2, 3], [3.0, 2.0, 1.0]) for name in NAMES])],
    "Stage 2": [Chart(str(index), "epoch", "percent", [Series("a", [1], [50.0])]) for index in range(3)],
    "Stage 3": [],
}


def test_a_picture_has_room_for_all_charts_and_an_svg_is_always_the_same(tmp_path):
    write_figure(tmp_path / "a.png", SECTIONS)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1650, 2145)  # 11 inches, and 4 rows of 3.2 with 3 headings of 0.5
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, SECTIONS)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert "<script>" not in svg and "dc:date" not in svg
    assert svg.count("<!-- Loss -->") == 1


def test_a_series_without_points_is_not_in_the_key_and_leaves_the_others_their_colors(tmp_path):
    empty, full, other = (Series(name, x, x) for name, x in (("none", []), ("some", [1, 2]), ("more", [1, 3])))
    for number, series in enumerate(([empty, full, other], [full, other])):
        write_figure(tmp_path / f"{number}.svg", {"": [Chart("Loss", "step", "loss", series)]})
    first, second = ((tmp_path / f"{number}.svg").read_text() for number in (0, 1))
    keys = [text.partition('<g id="legend_1">')[2] for text in (first, second)]
    assert [key.count('<g id="line2d_') for key in keys] == [2, 2]
    assert ["#0060a8" in key for key in keys] == [False, True]


def test_without_matplotlib_the_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    check_figure(tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"`out` a\.svg needs matplotlib: pip install 'progeo\[plot\]'.*a\.html"):
        check_figure(tmp_path / "a.svg")
