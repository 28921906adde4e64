import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from progeo.evaluation.report import write_report


class Page(HTMLParser):
    """The rows of a report, its texts and the addresses it refers to."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.figures, self.addresses, self.texts = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        classes = (attributes.get("class") or "").split()
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag == "li" and "row" in classes:
            self.rows.append(classes[1])
        if tag == "figure":
            self.figures.append((classes or [None])[0])

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def report(folder, **changes):
    """Three queries, four database images: right at rank 1; wrong by 90 m; wrong by 4,000 m but right at rank 2."""
    paths = []
    for index in range(7):
        paths.append(folder / f"@{index}@<b>&'.png")
        Image.new("RGB", (300, 200), (index * 30, 0, 0)).save(paths[-1])
    content = {
        "title": "R & <D>",
        "facts": {"encoder": "<script>alert(1)</script>", "folder": "test"},
        "recalls": {1: 33.333, 5: 66.666, 20: 100.0},
        "query_paths": paths[:3],
        "database_paths": paths[3:],
        "predictions": np.array([[0, 1], [1, 2], [2, 3]]),
        "distances_m": np.array([[3.0, 90.0], [90.0, 26.0], [4000.0, 25.0]]),
        "right": np.array([[True, False], [False, False], [False, True]]),
        "rule": "lies within 25 m of the query",
        **changes,
    }
    write_report(folder / "report.html", **content)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_query_is_a_row_with_its_predictions_the_worst_first(tmp_path):
    page = Page(report(tmp_path))
    assert page.rows == ["wrong", "wrong", "right"]
    assert page.figures == ["query", "wrong", "right", "query", "wrong", "wrong", "query", "right", "wrong"]
    assert page.text.index("4,000.0 m") < page.text.index("90.0 m") < page.text.index("3.0 m")
    assert page.text.count("✓ right") == 2
    assert page.text.count("✗ wrong") == 4


def test_recalls_and_counts_are_printed(tmp_path):
    text = Page(report(tmp_path)).text
    assert all(part in text for part in ("R@1 33.3 %", "R@5 66.7 %", "R@20 100.0 %"))
    assert "All 3 queries shown, worst first." in text
    assert "wrong (2)" in text
    assert "right (1)" in text


def test_no_more_queries_are_shown_than_asked_for_and_the_page_says_so(tmp_path):
    page = Page(report(tmp_path, max_queries=2))
    assert page.rows == ["wrong", "wrong"]
    assert "2 of 3 queries shown, worst first." in page.text


def test_no_more_predictions_are_shown_than_asked_for_nor_than_there_are(tmp_path):
    assert Page(report(tmp_path, num_shown=1)).figures.count("query") == 3
    assert len(Page(report(tmp_path, num_shown=1)).figures) == 6
    assert len(Page(report(tmp_path, num_shown=9)).figures) == 9


def test_the_page_stands_alone_and_shows_names_as_text(tmp_path):
    html = report(tmp_path)
    page = Page(html)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert len(page.addresses) == 9
    assert not re.search(r"https?://", html)
    assert "<script" not in html
    assert "<b>&'" not in html
    assert "R & <D>" in page.text


def test_thumbnails_are_bounded(tmp_path):
    import base64
    import io

    for address in Page(report(tmp_path)).addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            assert max(image.size) == 128


def test_an_image_that_cannot_be_opened_leaves_a_placeholder(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    page = Page(report(tmp_path, query_paths=[broken, tmp_path / "gone.jpg", tmp_path / "gone too.jpg"]))
    assert page.text.count("image cannot be opened") == 3
    assert len(page.rows) == 3


@pytest.mark.parametrize("recalls", [{1: 50.0}, {}])
def test_a_single_recall_or_none_still_makes_a_page(tmp_path, recalls):
    assert len(Page(report(tmp_path, recalls=recalls)).rows) == 3
