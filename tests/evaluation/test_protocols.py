import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from progeo.cli import main
from progeo.evaluation import protocols
from progeo.evaluation.benchmark import load_benchmark
from progeo.evaluation.options import BenchmarkOptions
from progeo.evaluation.protocols import load_protocol, protocol_names
from progeo.places.filename import format_names, parse_names

WITHOUT_PUBLISHED = {"msls_val_full", "sf_landmark", "sf_xs_val", "sf_xs_test", "tokyo_xs", "baidu_mall_angle"}
"""Protocols whose published numbers were not verified, or that nobody publishes."""


@pytest.fixture
def val(city):
    """12 database images and 6 queries of a toy city."""
    return city / "val"


@pytest.fixture
def own_val(val, tmp_path):
    """A copy to change."""
    return shutil.copytree(val, tmp_path / "val")


def evaluate(folder, out, *arguments):
    cache = ["--descriptor_cache", str(out.parent / "cache"), "--num_workers", "0"]
    main(["evaluate", "--encoder", "thumbnail", "--folder", str(folder), "--out", str(out), *cache, *arguments])


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_says_what_it_is_and_with_what_it_can_be_compared(name):
    protocol = load_protocol(name)
    assert protocol.description
    assert protocol.comparable
    assert protocol.positive_radius_m == (10 if name.startswith("baidu") else 25)
    assert protocol.num_queries > 0
    assert (protocol.num_database is None) == (name == "sf_landmark")  # which publications round


@pytest.mark.parametrize("name", protocol_names())
def test_published_recalls_are_named_with_their_source_the_lowest_first(name):
    published = load_protocol(name).published
    assert [each.recalls[1] for each in published] == sorted(each.recalls[1] for each in published)
    for each in published:
        assert each.recalls.keys() <= {1, 5, 10}
        assert re.search(r"20\d\d", each.source)
        assert 32 <= each.dim <= 2**16
    assert bool(published) == (name not in WITHOUT_PUBLISHED)
    assert {each.method for each in published if each.sees_other_images} <= {"CricaVPR", "SAGE"}
    assert all(each.sees_other_images for each in published if each.method in ("CricaVPR", "SAGE"))


def test_the_queries_of_svox_by_condition_are_those_that_papers_count_together():
    counts = [load_protocol(f"svox_{name}").num_queries for name in ("night", "overcast", "rain", "snow", "sun")]
    assert sum(counts) == 4356  # CricaVPR, CVPR 2024, table 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"year": 2023}, "must have method, backbone, dim, recalls, source, sees_other_images, .* got .*year"),
        ({"recalls": {}}, "percents at rising N"),
        ({"recalls": {5: 90, 1: 80}}, "percents at rising N"),
        ({"recalls": {1: 90, 5: 80}}, "percents at rising N"),
        ({"recalls": {1: 101}}, "percents at rising N"),
    ],
)
def test_a_wrong_row_of_published_recalls_is_refused(tmp_path, monkeypatch, change, message):
    row = {"method": "m", "backbone": "b", "dim": 512, "recalls": {1: 80}, "source": "s 2023"}
    text = Path(protocols.__file__).with_name("protocols").joinpath("st_lucia.yaml").read_text()
    (tmp_path / "protocols").mkdir()
    mine = {**yaml.safe_load(text), "published": [{**row, **change}]}
    (tmp_path / "protocols/mine.yaml").write_text(yaml.safe_dump(mine, sort_keys=False))
    monkeypatch.setattr(protocols, "resources", SimpleNamespace(files=lambda _: tmp_path))
    with pytest.raises(ValueError, match=message):
        load_protocol("mine")


def test_an_unknown_protocol_is_refused_with_those_that_there_are():
    with pytest.raises(
        ValueError, match=r"`protocol` 'pitts30' is not known: use one of .*pitts30k_test, .*sf_xl_test_v1"
    ):
        load_protocol("pitts30")


def test_a_protocol_sets_the_folders_the_criterion_and_panoramas():
    options = BenchmarkOptions(database="a", queries="b", positive_radius_m=5.0, radii_m=(1.0,))
    expected = BenchmarkOptions(radii_m=(1.0,), queries="queries_v1")
    assert load_protocol("sf_xl_test_v1").applied_to(options) == expected
    assert load_protocol("tokyo_247_panoramas").applied_to(options).one_per_panorama
    svox = load_protocol("svox_night").applied_to(options)
    assert (svox.database, svox.queries) == ("gallery", "queries_night")
    assert load_protocol("sf_xs_test").applied_to(options).queries == "b"  # which two distributions call otherwise
    assert load_protocol("baidu_mall").applied_to(options).positive_radius_m == 10


def test_images_of_a_database_that_publications_round_are_not_counted():
    protocol = load_protocol("sf_landmark")
    protocol.check("here", 1_040_000, 598)
    with pytest.raises(ValueError, match="sf_landmark has 598 queries, here has 803, so its recalls would not"):
        protocol.check("here", 1_040_000, 803)


@pytest.fixture
def small_protocol(monkeypatch, tmp_path):
    """Write a protocol with the counts of the toy city, and other values."""

    def write(**values):
        (tmp_path / "own/protocols").mkdir(parents=True)
        counts = {"num_database": 12, "num_queries": 6, "description": "small", "comparable": "none"}
        (tmp_path / "own/protocols/small.yaml").write_text(yaml.safe_dump({**counts, **values}))
        monkeypatch.setattr(protocols, "resources", SimpleNamespace(files=lambda _: tmp_path / "own"))
        return BenchmarkOptions(protocol="small", recall_ns=(1, 20))

    return write


def test_positives_that_do_not_follow_from_positions_must_be_given(val, small_protocol):
    options = small_protocol(positives_given=True)
    with pytest.raises(ValueError, match=r"`protocol` small needs the positives of each query, and .*queries has none"):
        load_benchmark(val, options)


def test_a_folder_with_other_counts_is_refused_with_both(val, tmp_path):
    with pytest.raises(SystemExit) as stop:
        evaluate(val, tmp_path / "out", "--protocol", "pitts30k_test")
    assert "has 10,000 database images and 6,816 queries" in str(stop.value.code)
    assert "has 12 and 6, so its recalls would not be comparable" in str(stop.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "queries",
    [
        ["00007.jpg", "00001.jpg", "00003.jpg", "00002.jpg", "00008.jpg", "00009.jpg"],  # as in tokyo247.mat
        [  # as the dataset downloader names them: the first that is sorted is another one
            f"@0381946.{place}@3946813.56@54@S@035.65912@0139.69594@{number}.jpg@@@@@@@@.jpg"
            for place, number in enumerate(["00007", "00001", "00003", "00002", "00008", "00009"], 10)
        ],
    ],
)
def test_day_sunset_and_night_of_tokyo_come_in_turn_by_the_numbers_of_the_queries(queries):
    conditions = load_protocol("tokyo_247").conditions_of(queries)
    assert conditions.tolist() == ["day", "day", "night", "sunset", "sunset", "night"]
    assert load_protocol("pitts30k_test").conditions_of(queries) is None


@pytest.mark.parametrize("queries", [["1.jpg", "x.jpg"], ["1.jpg", "01.jpg"], ["@5@7@.jpg", "@6@7@.jpg"]])
def test_queries_that_cannot_be_told_apart_by_numbers_are_refused(queries):
    with pytest.raises(
        ValueError, match="day, sunset, night by the numbers in the names of the queries, but not every name"
    ):
        load_protocol("tokyo_247").conditions_of(queries)


def test_recalls_of_each_condition_of_a_table_are_reported(own_val, tmp_path):
    queries = sorted(path.name for path in (own_val / "queries").iterdir())
    fields = parse_names(queries)
    rows = [
        f"{name},{fields.east[i]},{fields.north[i]},{'night' if i % 3 else 'day'}" for i, name in enumerate(queries)
    ]
    (tmp_path / "queries.csv").write_text("\n".join(["path,east,north,condition", *rows]) + "\n")
    table, images = str(tmp_path / "queries.csv"), str(own_val / "queries")
    main(["dataset", "import", "table", table, "--out", str(own_val / "mine"), "--images", images])
    evaluate(own_val, tmp_path / "out", "--queries", "mine")
    found = json.loads((tmp_path / "out/recalls.json").read_text())
    percents = {(each["queries"], each["n"], each["criterion"]): each["percent"] for each in found["table"]}
    for n in (1, 5, 10, 20):
        everything, day, night = (percents[name, n, "within 25 m"] for name in ("all", "day", "night"))
        assert everything == found["recalls"][f"R@{n}"] == pytest.approx((2 * day + 4 * night) / 6)
        assert percents["all", n, "within 5 m"] <= everything <= percents["all", n, "within 100 m"]
    rows = re.findall(r'<tr role="row">(.*?)</tr>', (tmp_path / "out/report.html").read_text(), re.DOTALL)
    texts = [re.sub(r"<.*?>", " ", row).split() for row in rows]
    assert ["night", "4"] in [row[:2] for row in texts]


def test_queries_that_would_all_be_excluded_are_refused(own_val, tmp_path):
    out = tmp_path / "out"
    for path in sorted((own_val / "queries").iterdir()):
        fields = parse_names([path.name])
        fields.north[:] += 5000
        path.rename(own_val / "queries" / format_names(fields)[0])
    with pytest.raises(SystemExit) as stop:
        evaluate(own_val, out, "--without_positive", "excluded")
    assert "No query of" in str(stop.value.code)
    assert not out.exists()
    evaluate(own_val, out)
    assert set(json.loads((out / "recalls.json").read_text())["recalls"].values()) == {0.0}


def test_one_prediction_of_a_panorama_can_be_asked_for(val, tmp_path):
    evaluate(val, tmp_path / "out", "--one_per_panorama", "true")
    with (tmp_path / "out/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    panoramas = {(row["query"], parse_names([row["database"]]).pano_id[0]) for row in rows}
    assert len(panoramas) == len(rows) >= 6
