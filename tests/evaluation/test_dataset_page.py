import html
import re

import numpy as np
import pytest

from progeo.evaluation.dataset_page import write_dataset_page

NOTHING = {"unreadable": {}, "tiny": [], "duplicates": [], "misplaced": {}}


def page(out, positions, **changes):
    sets = {
        name: {"images": len(places), "sizes": {"8 x 8": len(places)}, **NOTHING} for name, places in positions.items()
    }
    report = {"folder": "some <folder>", "sets": sets, **changes}
    write_dataset_page(out / "check.html", report, positions)
    return (out / "check.html").read_text(encoding="utf-8")


def test_the_map_counts_every_image_and_puts_north_up(tmp_path):
    places = np.array([[500_000.0, 4_000_000]] * 3 + [[501_000, 4_000_000]] + [[500_000, 4_001_000]] * 2)
    squares = re.findall(
        r'<rect class="place" x="([\d.]+)" y="([\d.]+)"[^>]*><title>(\d+) images', page(tmp_path, {"train": places})
    )
    (west, south, three), (_, north, two), (east, _, one) = squares
    assert (three, two, one) == ("3", "2", "1")
    assert float(south) > float(north)
    assert float(east) > float(west)


def test_queries_are_dots_on_the_same_map(tmp_path):
    database = np.array([[500_000.0, 4_000_000], [501_200, 4_001_200]])
    found = page(tmp_path, {"database": database, "queries": np.array([[500_600.0, 4_000_300]])})
    dot = re.search(r'class="query" cx="([\d.]+)" cy="([\d.]+)"', found).groups()
    assert dot == ("357.0", "541.5")  # 60 squares from the west and 30 from the south, of 121 on 720 pixels


def test_hundreds_of_thousands_of_images_and_queries_leave_a_small_page(tmp_path):
    rng = np.random.default_rng(0)
    sides = {name: rng.normal(4e5, 2000, (300_000, 2)) for name in ("database", "queries")}
    found = page(tmp_path, sides, queries_without_positive=[f"q{index}.jpg" for index in range(10_000)])
    assert len(found) < 3_000_000
    assert "queries without a positive (10,000, the first 100)" in found


def test_what_was_found_is_shown_as_text_and_nothing_is_fetched(tmp_path):
    broken = {
        "images": 1,
        "sizes": {},
        **NOTHING,
        "unreadable": {"<b>.jpg": "cut & gone"},
        "duplicates": [["a.jpg", "b.jpg"]],
    }
    found = page(tmp_path, {"train": np.array([[np.nan, np.nan]])}, sets={"train": broken})
    assert "&lt;b&gt;.jpg: cut &amp; gone" in found
    assert "a.jpg = b.jpg" in found
    assert "These images have no coordinates" in found
    assert "<b>" not in found
    assert not re.search(r"https?://|src=|href=", found)


@pytest.mark.parametrize("evil", ["</script><script>alert(1)</script>", "\"' onload='alert(1)", "{{ 7 * 7 }}"])
def test_no_text_becomes_a_part_of_the_page(tmp_path, evil):
    def written(text):
        found = {
            "images": 1,
            "sizes": {text: 1},
            "unreadable": {text: text},
            "tiny": [text],
            "duplicates": [[text, text]],
            "misplaced": {text: text},
            "where": text,
            "map_link": None,
        }
        more = {"folder": text, "queries_without_positive": [text]}
        return page(tmp_path, {text: np.array([[500_000.0, 4_000_000]])}, sets={text: found}, **more)

    tags = [re.findall(r"<[a-z]+(?: [\w-]+=\"[^\"]*\")*", written(text)) for text in (evil, "plain")]
    assert [tag.split()[0] for tag in tags[0]] == [tag.split()[0] for tag in tags[1]]
    assert not any("onload" in tag for tag in tags[0])
    assert html.unescape(written(evil)).count(evil) > 10


def test_bars_count_classes_of_so_many_images_and_the_last_takes_all_larger_ones(tmp_path):
    classes = {
        "cell_side_m": 10,
        "heading_bin_deg": 30,
        "classes": 8,
        "images": 300,
        "classes_per_group": [5, 3],
        "classes_with_so_many_images": {10: 4, 12: 2, 60: 1, 90: 1},
    }
    found = page(tmp_path, {"train": np.zeros((1, 2))}, classes=classes)
    bars = [int(count) for count in re.findall(r'<rect class="bar"[^>]*><title>(\d+) classes', found)]
    assert len(bars) == 40
    assert (bars[0], bars[1], bars[2], bars[-1], sum(bars)) == (4, 0, 2, 2, 8)
    assert "classes of 10 to 49 or more images" in found
