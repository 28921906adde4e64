"""Folders as the field's dataset downloader and SF-XL leave them, with names written as theirs."""

import pytest

from progeo.commands.dataset_check import check_dataset
from progeo.config.datasets import CheckSettings
from progeo.datasets.query_sets import load_query_set

PITTS = "@0585001.{}@4476844.16@17@T@040.43772@-079.99732@000042@0{}@@@@@@pitch1_yaw{}@.jpg"
COPENHAGEN = "@0346880.{}@6170532.53@33@U@055.65634@0012.56524@5rhXJE_{}@@@@@@20190512@day_forward_cph@.jpg"
SAN_FRANCISCO = "@0346880.{}@6170532.53@10@S@037.75120@-122.4197@XbqPk-{}@@@@@@20180101@night_sideways_sf@.jpg"
NORDLAND = "@0@{}@@@@@{}@@@@@@@@.jpg"
TOKYO = "@0381946.12@3946{}.56@54@S@035.65912@0139.69594@{}@@@@@@@@.jpg"
ST_LUCIA = "@0495{}.05@6953000.11@56@J@-27.54461@0152.94934@@@@@@@200908190845@frame{}@.jpg"
SVOX = "@0620010.{}@5735820.31@30@U@051.75891@-001.2597@@@{}@@@@20141216@@.jpg"
SF_XL = "@054{}.13@4174858.97@10@S@037.71993@-122.50016@i7EdfG0z_R{}@@60@@@@201501@@.jpg"


@pytest.mark.parametrize(
    ("folders", "database", "queries", "right"),
    [
        (("database", "queries"), [PITTS.format(11, 2, 3), PITTS.format(91, 3, 4)], [PITTS.format(50, 9, 9)], [[0, 1]]),
        # MSLS: two cities, whose meters of different zones may be alike
        (
            ("database", "queries"),
            [SAN_FRANCISCO.format(10, "a"), COPENHAGEN.format(20, "b")],
            [COPENHAGEN.format(30, "c"), SAN_FRANCISCO.format(40, "d")],
            [[1], [0]],
        ),
        # Nordland: no zone, no degrees, frames 25 / 10.5 m apart in a line, ten to either side are right
        (
            ("database", "queries"),
            [NORDLAND.format(f"{frame * 25 / 10.5:07.1f}", frame) for frame in range(40)],
            [NORDLAND.format("00047.6", 20)],
            [list(range(10, 31))],
        ),
        (("database", "queries"), [TOKYO.format(813, "pano")], [TOKYO.format(820, "00001.jpg")], [[0]]),
        (
            ("database", "queries"),
            [ST_LUCIA.format("010", 1), ST_LUCIA.format(100, 2)],
            [ST_LUCIA.format("090", 7)],
            [[1]],
        ),
        (("gallery", "queries_night"), [SVOX.format(10, 350)], [SVOX.format(90, "")], [[0]]),
        (
            ("database", "queries_v1"),
            [SF_XL.format(4051, "a"), SF_XL.format(4099, "b")],
            [SF_XL.format(4100, "")],
            [[1]],
        ),
        (
            ("database", "queries_v2"),
            [SF_XL.format(4051, "a"), SF_XL.format(4099, "b")],
            ["@544050@4174858@.jpg"],
            [[0]],
        ),
    ],
    ids=["pitts30k", "msls", "nordland", "tokyo247", "st_lucia", "svox", "sf_xl v1", "sf_xl v2"],
)
def test_a_downloaded_set_is_read_as_it_lies(tmp_path, folders, database, queries, right):
    test = tmp_path / "datasets/name/images/test"
    for folder, names in zip(folders, (database, queries), strict=True):
        (test / folder).mkdir(parents=True)
        for name in names:
            (test / folder / name).touch()
    query_set = load_query_set(test, *folders, radius_m=25)
    found = {
        query_set.queries.name(row): {query_set.database.name(positive) for positive in positives}
        for row, positives in enumerate(query_set.positives)
    }
    assert found == {query: {database[i] for i in rows} for query, rows in zip(queries, right, strict=True)}


def test_the_names_that_vpr_methods_evaluation_documents_are_evaluated_with(tmp_path):
    for side, shift_m in (("database", 0), ("queries", 2)):
        (tmp_path / side).mkdir()
        for frame in range(4):
            (tmp_path / side / f"@{550000 + 40 * frame + shift_m}@4180000@front_{frame:04}@.jpg").touch()
    positives = load_query_set(tmp_path, "database", "queries", radius_m=25).positives
    assert [rows.tolist() for rows in positives] == [[0], [1], [2], [3]]


def test_queries_without_a_zone_are_refused_where_the_database_crosses_a_border(tmp_path):
    for name in ("database/@550000@4180000@10@S@.jpg", "database/@300000@4180000@11@S@.jpg", "queries/@550002@4@.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"1 of 1 images of .*queries have no UTM zone.* lie in zones 10, 11"):
        load_query_set(tmp_path, "database", "queries", radius_m=25)
    with pytest.raises(ValueError, match=r"1 of 1 images of .*queries have no UTM zone.* lie in zones 10, 11"):
        check_dataset(tmp_path, settings=CheckSettings())
