import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of
from PIL import Image

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.metrics import chance_recalls, recall_table
from progeo.evaluation.missed import Missed
from progeo.evaluation.protocols import Published
from progeo.evaluation.report import Measured, shown_queries, write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue

NAMES = [f"@{index}@<b>&'.png" for index in range(7)]
EAST, NORTH = 550_000, 4_180_000


def catalogue(folder, names, east, **columns):
    zone, heading = np.zeros(len(names), np.int8), np.full(len(names), np.nan)
    known = {"east": east, "north": np.full(len(names), 7.0), "zone": zone, "heading": heading}
    return Catalogue(folder, pa.table({"path": pa.array(names, pa.large_string()), **known, **columns}))


def retrieved(folder, **changes):
    """Three queries, four database images: correct at rank 1; wrong by 90 m; wrong by 4,000 m but correct at rank 2."""
    for index, name in enumerate(NAMES):
        Image.new("RGB", (300, 200), (index * 30, 0, 0)).save(folder / name)
    content = {
        "database": catalogue(folder, NAMES[3:], [3.0, 90, 116, 3975]),
        "queries": catalogue(folder, NAMES[:3], [0.0, 0, 4000]),
        "predictions": np.array([[0, 1], [1, 2], [0, 3]]),
        "positives": {"within 25 m": [np.array([0]), np.array([0]), np.array([3])]},
        "conditions": np.array(["night", "day", "night"]),
        "distances": np.array([[0.5, 0.75], [0.25, 1.5], [1.125, 2]]),
    }
    return Retrieved(**{**content, **changes})


def measured(found, ns=(1, 2), **changes):
    table = recall_table(found.predictions, found.positives, found.groups(), ns)
    counts = np.array([len(rows) for rows in found.positives[found.criterion]])
    return Measured(table, chance_recalls(counts, len(found.database), ns), **changes)


def written(folder, found, *, facts=None, ns=(1, 2), more=None, title="R & <D>", **options):
    numbers = measured(found, ns, **(more or {})) if found.labeled else None
    facts = {"encoder": "e", "folder": "test", **(facts or {})}
    write_report(folder / "report.html", found, title=title, facts=facts, measured=numbers, **options)
    return (folder / "report.html").read_text(encoding="utf-8")


def data_of(html, name):
    found = re.search(f'<script type="application/json" id="{name}-data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found[1]) if found else None


def rows_of(html):
    """For each row its key, verdict, name, values of filters, and strips: title and items (name, verdict, values)."""
    data = data_of(html, "gallery")
    verdicts, names = ["wrong", "correct", ""], [name for name, *_ in data["photos"]]
    filters = list(data["filters"].items())
    return [
        (
            key,
            verdicts[mark],
            names[photo],
            {filters[at][0]: filters[at][1][value] for at, value in enumerate(values) if value >= 0},
            {
                data["titles"][title]: [(names[number], verdicts[each], told) for number, each, *told in items]
                for title, items in strips
            },
        )
        for key, photo, mark, values, strips, _ in data["rows"]
    ]


def text_of(html):
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_every_query_is_a_row_with_its_predictions_the_worst_first(tmp_path):
    html = written(tmp_path, retrieved(tmp_path))
    assert [(key, verdict, name) for key, verdict, name, _, _ in rows_of(html)] == [
        (2, "wrong", NAMES[2]),
        (1, "wrong", NAMES[1]),
        (0, "correct", NAMES[0]),
    ]
    assert [strips["Predictions"] for *_, strips in rows_of(html)] == [
        [(NAMES[3], "wrong", [1, 3997, 1.125]), (NAMES[6], "correct", [2, 25, 2])],
        [(NAMES[4], "wrong", [1, 90, 0.25]), (NAMES[5], "wrong", [2, 116, 1.5])],
        [(NAMES[3], "correct", [1, 3, 0.5]), (NAMES[4], "wrong", [2, 90, 0.75])],
    ]
    data = data_of(html, "gallery")
    assert data["measures"] == [["rank", "rank"], ["distance_m", "meters"], ["descriptor_distance", "descriptor"]]
    assert data["orders"] == [["worst first", "given"], ["worst last", "reversed"], ["by name", "name"]]


def test_queries_are_filtered_by_verdict_and_group(tmp_path):
    html = written(tmp_path, retrieved(tmp_path))
    near, far = "0 to 5 m from the database", "10 to 25 m from the database"
    assert [facets for *_, facets, _ in rows_of(html)] == [
        {"verdict": "wrong", "condition": "night", "distance": "25 to 50 m from the database"},
        {"verdict": "wrong", "condition": "day", "distance": near},
        {"verdict": "correct", "condition": "night", "distance": near},
    ]
    assert data_of(html, "gallery")["filters"]["distance"] == [near, "25 to 50 m from the database"] != [near, far]


def test_recall_at_1_with_its_interval_comes_first_then_chance(tmp_path):
    text = text_of(written(tmp_path, retrieved(tmp_path)))
    first, second = measured(retrieved(tmp_path)).recalls[:2]
    figures = f"R@1 33.3 % 95 % interval {first.low:.1f} to {first.high:.1f} R@2 66.7 % {second.low:.1f} to"
    assert figures in text
    assert "3 queries, correct within 25 m. A random guess would have R@1 25 %." in text
    assert text.index(figures) < text.index("Map") < text.index("Queries") < text.index("Settings")


def test_recalls_of_groups_are_bars_with_counts_and_a_table(tmp_path):
    html = written(tmp_path, retrieved(tmp_path))
    text = text_of(html)
    assert "R@1 by condition" in text
    assert re.search(r"night day 2 1 condition; below, the number of queries", text)
    assert re.search(r"0-5 25-50 2 1 m to the database; below, the number of queries", text)
    rows = {row[0]: row[1:] for row in table_of(html, "Recall by radius and group")}
    assert rows["all, within 25 m"][:1] == ["3"]
    assert [cell.split()[0] for cell in rows["night"]] == ["2", "50.0", "100.0"]
    assert [cell.split()[0] for cell in rows["day"]] == ["1", "0.0", "0.0"]


def table_of(html, summary):
    table = re.search(rf"<summary>{summary}</summary>\s*<table.*?</table>", html, re.DOTALL)[0]
    rows = re.findall(r'<tr role="row">(.*?)</tr>', table, re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells[1:]]


def test_published_recalls_are_points_of_the_curve_and_a_table_with_sources(tmp_path):
    published = [
        Published("Old", "VGG-16", 4096, {1: 50.0}, "A paper, 2016"),
        Published("New", "ViT", 512, {1: 90.0, 5: 95.5}, "Another, 2024"),
        Published("Peeking", "ViT", 512, {1: 99.5}, "Third, 2025", sees_other_images=True),
    ]
    html = written(tmp_path, retrieved(tmp_path), more={"published": published})
    assert table_of(html, "Published recalls of this protocol") == [
        ["Old", "VGG-16", "4,096", "50.0", "", "A paper, 2016"],
        ["New", "ViT", "512", "90.0", "95.5", "Another, 2024"],
        ["Peeking", "ViT", "512", "99.5", "", "Third, 2025; not comparable: sees other test images"],
    ]
    assert "Peeking, 512" not in html  # no point of the curve
    assert "New, 512: 95.5 at 5" in html
    assert "chance: 25 at 1" in html
    assert "Published recalls" not in written(tmp_path, retrieved(tmp_path))


def test_labels_of_published_recalls_do_not_overlap(tmp_path):
    published = [Published(f"m{percent}", "b", 8, {1: float(percent)}, "s") for percent in (60, 80, 86, 88, 92)]
    html = written(tmp_path, retrieved(tmp_path), more={"published": published})
    figure = html.partition("<figcaption>R@N</figcaption>")[2].partition("</svg>")[0]
    assert re.findall(r">(m\d+)</text>", figure) == ["m60", "m80", "m92"]


def test_the_nearest_correct_image_that_was_missed_is_shown_unless_it_is_among_the_predictions(tmp_path):
    found = retrieved(tmp_path)
    best = Missed(np.array([2, 1]), np.array([3, 0]), np.array([2, 4]), np.array([2.0, 3.5], np.float32))
    rows = rows_of(written(tmp_path, found, more={"missed": best}))
    title = "Nearest correct image, missed"
    assert [title in strips for *_, strips in rows] == [False, True, False]
    assert rows[1][-1][title] == [(NAMES[3], "correct", [4, 3, 3.5])]
    text = "The rank of a correct image that was missed is by descriptors among all"
    assert f"{text} images." in text_of(written(tmp_path, found))
    html = written(tmp_path, replace(found, panoramas=np.array(["a", "a", "b", "c"])), facts={"re-ranking": "k"})
    assert f"{text} panoramas, before re-ranking." in text_of(html)


def test_pictures_are_those_of_the_worst_queries_and_of_some_that_are_correct(tmp_path):
    found = retrieved(tmp_path, predictions=np.array([[0, 1], [0, 1], [0, 1]]))
    assert shown_queries(found, 2).tolist() == [2, 0]  # of the two that are correct, the first
    html = written(tmp_path, found, max_pictured=2)
    data = data_of(html, "gallery")
    assert {name for name, picture, *_ in data["photos"] if picture} == {NAMES[index] for index in (0, 2, 3, 4)}
    assert [facets["pictures"] for *_, facets, _ in rows_of(html)] == ["with pictures", "with pictures", "by name only"]
    assert "2 of them have pictures: the worst, and some that are correct." in text_of(html)
    assert "pictures" not in data_of(written(tmp_path, found), "gallery")["filters"]


def test_rows_are_bounded_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.evaluation.report.MAX_ROWS", 2)
    html = written(tmp_path, retrieved(tmp_path))
    assert [key for key, *_ in rows_of(html)] == [2, 1]
    assert "2 of 3 queries are listed: the worst, and some that are correct." in text_of(html)
    assert sum(len(each["keys"]) for each in data_of(html, "map")["points"]) == 3


def test_no_more_predictions_are_shown_than_asked_for_nor_than_there_are(tmp_path):
    for wanted, shown in ((1, 1), (9, 2)):
        rows = rows_of(written(tmp_path, retrieved(tmp_path), num_shown=wanted))
        assert [len(strips["Predictions"]) for *_, strips in rows] == [shown] * 3


def test_an_image_that_cannot_be_opened_leaves_a_placeholder(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    queries = catalogue(tmp_path, ["broken.jpg", "gone.jpg", "gone too.jpg"], [0.0, 0, 0])
    photos = data_of(written(tmp_path, retrieved(tmp_path, queries=queries)), "gallery")["photos"]
    assert {name for name, picture in photos if picture == ""} == {"broken.jpg", "gone.jpg", "gone too.jpg"}


def test_recalls_at_one_n_or_in_any_order_still_make_a_page(tmp_path):
    assert "R@1 33.3 %" in text_of(written(tmp_path, retrieved(tmp_path), ns=(1,)))
    text = text_of(written(tmp_path, retrieved(tmp_path), ns=(2, 1)))
    assert text.index("R@1 33.3 %") < text.index("R@2 66.7 %")


def test_distances_of_top_predictions_are_counted_by_verdict(tmp_path):
    html = written(tmp_path, retrieved(tmp_path))
    figure = html.partition("Distance of the top prediction</figcaption>")[2].partition("</figure>")[0]
    tips = re.findall(r"<title>(.*?)</title>", figure)
    assert [tip for tip in tips if not tip.endswith(": 0")] == [
        "3-10, correct: 1",  # 3 m, the lower end included
        "30-100, wrong: 1",
        "3k-10k, wrong: 1",
    ]


def test_the_map_has_the_database_and_all_queries_with_lines_to_their_top_predictions(tmp_path):
    found = retrieved(tmp_path)
    best = Missed(np.array([1]), np.array([0]), np.array([4]), np.array([3.5], np.float32))
    data = data_of(written(tmp_path, found, more={"missed": best}, max_pictured=2), "map")
    assert data["unit"] == "meters"
    assert data["database"]["positions"] == [7, 3, 7, 90, 7, 116, 7, 3975]
    correct, wrong = data["points"]
    assert (correct["kind"], correct["keys"], correct["positions"], correct["targets"]) == (
        "correct",
        [0],
        [7, 0],
        [7, 3],
    )
    assert (wrong["kind"], wrong["keys"], wrong["labels"]) == ("wrong", [1, 2], NAMES[1:3])
    assert wrong["targets"] == [7, 90, 7, 3]
    assert data["details"].keys() == {"1", "2"}
    predictions, missed = data["details"]["1"]["points"]
    assert (predictions["kind"], predictions["positions"]) == ("match", [7, 90, 7, 116])
    assert (missed["kind"], missed["positions"]) == ("found", [7, 3])
    assert missed["labels"] == ["Nearest correct image, missed"]


def test_the_map_draws_no_prediction_where_there_is_none(tmp_path):
    found = retrieved(tmp_path, predictions=np.array([[0, 1], [1, -1], [-1, -1]]))
    data = data_of(written(tmp_path, found), "map")
    assert data["details"]["1"]["points"][0]["positions"] == [7, 90]
    assert data["points"][1]["targets"] == [7, 90, None, None]


def test_images_without_a_place_give_a_page_without_a_map(tmp_path):
    nowhere = catalogue(tmp_path, NAMES[:3], np.full(3, np.nan))
    html = written(tmp_path, retrieved(tmp_path, queries=nowhere, predictions=np.array([[0, -1], [1, -1], [2, -1]])))
    assert data_of(html, "map") is None
    assert "<h2>Map" not in html
    assert next(strips["Predictions"] for *_, strips in rows_of(html)) == [(NAMES[4], "wrong", [1, None, 0.25])]
    assert "Distance of the top prediction" not in html


@pytest.mark.parametrize(("orientation", "is_upright"), [("exif", True), ("ignore", False)])
def test_photos_are_shown_in_the_orientation_that_they_were_searched_in(orientation, is_upright, tmp_path):
    found = retrieved(tmp_path, orientation=orientation)
    image = Image.open(tmp_path / NAMES[0])
    image.getexif()[0x0112] = 6
    image.save(tmp_path / NAMES[0], exif=image.getexif())
    photos = dict(data_of(written(tmp_path, found), "gallery")["photos"])
    with Image.open(io.BytesIO(base64.b64decode(photos[NAMES[0]]))) as shown:
        assert (shown.width < shown.height) == is_upright


def test_a_query_without_positives_is_told_so(tmp_path):
    positives = {"within 25 m": [np.array([0]), np.array([], int), np.array([3])]}
    rows = data_of(written(tmp_path, retrieved(tmp_path, positives=positives)), "gallery")["rows"]
    assert [note for *_, note in rows] == ["", "The database has no image within 25 m.", ""]


def test_queries_without_labels_are_shown_the_nearest_descriptors_first_and_nothing_is_called_correct(tmp_path):
    nowhere = {
        side: catalogue(tmp_path, names, np.full(len(names), np.nan))
        for side, names in (("queries", NAMES[:3]), ("database", NAMES[3:]))
    }
    distances = np.array([[0.5, 0.75], [0.25, 1.5], [1.125, np.nan]])
    predictions = np.array([[0, 1], [1, 2], [0, -1]])
    html = written(tmp_path, retrieved(tmp_path, positives={}, predictions=predictions, distances=distances, **nowhere))
    rows = rows_of(html)
    assert [(key, verdict) for key, verdict, *_ in rows] == [(1, ""), (0, ""), (2, "")]
    assert [strips["Predictions"] for *_, strips in rows][1:] == [
        [(NAMES[3], "", [1, None, 0.5]), (NAMES[4], "", [2, None, 0.75])],
        [(NAMES[3], "", [1, None, 1.125])],
    ]
    text, footer, _ = text_of(html).partition("Positions are estimates")
    assert footer
    assert "3 queries without ground truth, those with the nearest descriptors first." in text
    for word in ("Recall", "<h2>Map", "R@1", "missed", "wrong"):
        assert word not in text
    assert data_of(html, "map") is None


def of_classes(folder, *, labeled=True):
    """Two queries, four classes in three cells of 20 m: one at the west, two at the middle, one at the north east."""
    ids = [[EAST, NORTH, 0], [EAST + 100, NORTH, 0], [EAST + 100, NORTH, 180], [EAST + 200, NORTH + 60, 0]]
    classifier = classifier_of(ids, groups_per_side=1, heading_bin_deg=180)
    rows = np.array([[1, 3, 2, -1], [0, 3, 1, 2]])
    probabilities = np.array([[0.5, 0.25, 0.125, 0], [0.9, 0.06, 0.02, 0.01]], np.float32)
    columns = {"east": [EAST + 110.0, np.nan], "north": [NORTH - 10.0, np.nan], "zone": pa.array([10, 10], pa.int8())}
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(folder / name)
    return Retrieved(
        classifier.catalogue,
        catalogue(folder, ["a.png", "b.png"], **columns),
        rows[:, :3],
        {"within 25 m": [np.array([1, 2]), np.array([], int)]} if labeled else {},
        np.array(["", ""]),
        classes=ClassScores(classifier, rows, probabilities, "softmax of 100 x cosine"),
    )


def test_classes_are_named_with_their_probability_and_have_no_picture(tmp_path):
    found = of_classes(tmp_path)
    html = written(tmp_path, found)
    _, first = rows_of(html)
    assert first[-1]["Predictions"][0] == (f"cell {EAST + 100} {NORTH} 0", "correct", [1, 20, 50])
    data = data_of(html, "gallery")
    assert data["measures"][2] == ["probability_percent", "percent"]
    assert {picture for name, picture in data["photos"] if name.startswith("cell")} == {False}
    text = text_of(html)
    assert "Percentages are probabilities: softmax of 100 x cosine." in text
    assert "A prediction is correct if the center of its cell lies within 25 m of the query." in text
    assert "LR@1 50.0 %" in text


def test_cells_of_a_chosen_query_are_squares_with_the_sum_of_their_classes(tmp_path):
    data = data_of(written(tmp_path, of_classes(tmp_path)), "map")
    assert data["details"]["0"]["points"] == []  # they would hide the cells
    (cells,) = data["details"]["0"]["polygons"]
    assert cells["weights"] == [0.625, 0.25]  # two headings of one cell
    assert cells["labels"] == ["62.5 %", "25.0 %"]
    middle, north_east = np.array(cells["corners"]).reshape(2, 4, 2)
    assert (middle.min(axis=0).tolist(), middle.max(axis=0).tolist()) == ([NORTH, EAST + 100], [NORTH + 20, EAST + 120])
    assert north_east.mean(axis=0).tolist() == [NORTH + 70, EAST + 210]
    points = data["points"]
    assert [(each["name"], each["known"]) for each in points] == [("correct queries", 1), ("wrong queries", 0)]
    assert points[0]["targets"] == middle.mean(axis=0).tolist()
    assert data["details"]["1"]["polygons"][0]["weights"] == pytest.approx([0.9, 0.06, 0.03])


def test_the_best_class_with_a_correct_center_is_shown_if_it_was_missed(tmp_path):
    found = replace(of_classes(tmp_path), predictions=np.array([[3], [0]]))
    best = Missed(np.array([0]), np.array([2]), np.array([17]), np.array([0.125], np.float32))
    rows = {key: strips for key, *_, strips in rows_of(written(tmp_path, found, more={"missed": best}))}
    name = found.database.name(2)
    assert rows[0]["Best class with a correct center, missed"] == [(name, "correct", [17, 20, 12.5])]


def test_queries_without_positions_are_ordered_by_probability_and_keep_the_map_of_their_cells(tmp_path):
    html = written(tmp_path, of_classes(tmp_path, labeled=False))
    assert [name for _, _, name, *_ in rows_of(html)] == ["b.png", "a.png"]
    assert "those with the most probable classes first" in text_of(html)
    assert data_of(html, "map")["details"].keys() == {"0", "1"}


def test_queries_are_grouped_by_their_distance_to_the_nearest_class(tmp_path):
    found = of_classes(tmp_path)
    east, north = [EAST + 110.0, EAST + 210.0], [NORTH - 10.0, NORTH + 73]
    queries = catalogue(tmp_path, ["a.png", "b.png"], east, north=north, zone=pa.array([10, 10], pa.int8()))
    groups = replace(found, queries=queries).groups()
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "all": [0, 1],
        "0 to 5 m from the nearest class": [1],
        "10 to 25 m from the nearest class": [0],
    }


def test_absolute_paths_are_shown_only_if_asked_for(tmp_path):
    secret = str(tmp_path)
    database = catalogue(tmp_path, [str(tmp_path / name) for name in NAMES[3:]], [3.0, 90, 116, 3975])
    found = retrieved(tmp_path, database=database)
    facts = {"folder": f"{secret}/city", "database": f"4 images in {secret}/city/database"}
    html = written(tmp_path, found, facts=facts)
    assert secret not in html
    assert "…/city/database" in html
    assert {name for name, *_ in data_of(html, "gallery")["photos"]} >= {f"…/{tmp_path.name}/{NAMES[3]}"}
    html = written(tmp_path, found, facts=facts, show_paths=True)
    assert f"4 images in {secret}/city/database" in html
    assert [each[2] for each in data_of(html, "gallery")["photos"]][-1] == str(tmp_path / NAMES[0])


class Tags(HTMLParser):
    """The names of all tags and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}


EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"' onload='alert(1)"""


@pytest.mark.parametrize("evil", [EVIL, "{{ 7 * 7 }}"])
@pytest.mark.parametrize("by_classes", [False, True])
def test_no_text_becomes_a_part_of_the_page(tmp_path, evil, by_classes):
    def page(text):
        names = [f"{text}{index}.png" for index in range(5)]
        queries, database = catalogue(tmp_path, names[:3], [0.0, 0, 4000]), catalogue(tmp_path, names[3:], [3.0, 90])
        rows, scores = np.tile([0, 1], (3, 1)), None
        if by_classes:
            classifier = classifier_of([(0, 0, 0), (20, 0, 0)], 2)
            database = classifier.catalogue
            scores = ClassScores(classifier, rows, np.full((3, 2), 0.5), text)
        positives = {text: [np.array([0]), np.array([1]), np.array([], np.int64)]}
        found = Retrieved(database, queries, rows, positives, np.array([text, "", text]), classes=scores)
        return written(tmp_path, found, facts={text: text, "encoder": text, "folder": text}, title=text)

    plain, found = page("plain"), page(evil)
    assert Tags(found).tags == Tags(plain).tags
    assert Tags(found).attributes == Tags(plain).attributes
    assert text_of(found).count(evil) > 3
    assert f"{evil}0.png" in {name for name, *_ in data_of(found, "gallery")["photos"]}


def test_pictures_are_bounded(tmp_path):
    for _, picture in data_of(written(tmp_path, retrieved(tmp_path)), "gallery")["photos"]:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.format == "WEBP"
            assert max(image.size) == 300
