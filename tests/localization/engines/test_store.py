import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import adding_points
import faiss
import numpy as np
import pyarrow as pa
import pytest
from qdrant_server import qdrant_server

from progeo.localization.engines.connecting import connect, engine_metadata
from progeo.localization.engines.edge import EdgeCollection
from progeo.localization.engines.options import EngineOptions
from progeo.localization.engines.points import keys_and_rows, part_key, point_id
from progeo.localization.engines.store import EngineStore
from progeo.localization.engines.writer import EngineWriter
from progeo.localization.index_metadata import PartMetadata
from progeo.localization.part_files import NewRows, PartFormat, write_part
from progeo.localization.restriction import Restriction
from progeo.places.catalogue import Catalogue
from progeo.places.nearby import HeadingRange, Near, haversine_m, looks_toward

CENTERS = [(48.2, 16.4), (0.0, 179.9999), (89.999, 20.0), (-37.8, 144.9)]
SIZES = {"first": 300, "second": 100}
QUERIES = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
_NAMES = count()


class Rows:
    """Rows in memory, of which those before `unread` cannot be read."""

    def __init__(self, values, unread=0):
        self.values, self.width, self.unread = values, values.shape[1], unread

    def __len__(self):
        return len(self.values)

    def take(self, rows):
        assert rows.min() >= self.unread
        return self.values[rows]


def images(num, seed):
    """Images around the centers, up to 2 km away, a fifth without a heading and the last one without a position."""
    random = np.random.default_rng(seed)
    center = np.array(CENTERS)[np.arange(num) % len(CENTERS)]
    latitude = center[:, 0] + random.uniform(-0.01, 0.01, num)
    latitude = np.where(latitude > 90, 180 - latitude, latitude)
    longitude = (center[:, 1] + random.uniform(-0.02, 0.02, num) + 180) % 360 - 180
    latitude[-1] = longitude[-1] = np.nan
    columns = {"east": np.zeros(num), "north": np.zeros(num), "zone": np.zeros(num, np.int8)}
    columns |= {"heading": np.where(np.arange(num) % 5 == 0, np.nan, random.uniform(-180, 720, num))}
    columns["heading"][1] = -1e-15  # which is 360 modulo 360
    paths = pa.array([f"/images/{seed}/{row}.jpg" for row in range(num)], pa.large_string())
    return Catalogue(
        Path("/images"), pa.table({"path": paths, **columns, "latitude": latitude, "longitude": longitude})
    )


CATALOGUES = {name: images(num, seed) for seed, (name, num) in enumerate(SIZES.items())}
CATALOGUE = Catalogue(Path("/images"), pa.concat_tables([each.table for each in CATALOGUES.values()]))
DESCRIPTORS = {
    name: np.random.default_rng(num).standard_normal((num, 8)).astype(np.float32) for name, num in SIZES.items()
}
DESCRIPTORS["second"][7] = DESCRIPTORS["first"][5] = 9.0  # far from all others
ALL = np.concatenate(list(DESCRIPTORS.values()))


def engine_of(url, folder, **options):
    name = None if "/" in url and "http" not in url else f"index_{next(_NAMES)}"
    given = EngineOptions(engine="qdrant", engine_url=url, engine_collection=name, **options)
    return engine_metadata(given, folder / "index", "owner")


def part(name, rows, **known):
    known = {"num_degrees": rows, "num_headings": rows} | known
    identifier = name.encode().hex().ljust(32, "0")
    return PartMetadata("part_00000", identifier, rows, zones=(), cells=None, files={}, **known)


PARTS = {name: part(name, rows) for name, rows in SIZES.items()}
BOTH = tuple(PARTS.values())


def stored(engine, folder, rows=DESCRIPTORS):
    """A writer that has stored parts."""
    writer = EngineWriter(connect(engine, folder), engine, "encoder")
    for name, values in rows.items():
        writer.add(PARTS[name].engine_id, Rows(values), CATALOGUES[name])
    return writer


def opened(writer, parts=BOTH, removed=()):
    removed = np.array(removed, np.int64)
    return EngineStore(writer.collection, writer.engine, tuple(parts), removed, Path("index"), is_exact=True)


@pytest.fixture(scope="module", params=[":memory:", "edge", pytest.param("server", marks=pytest.mark.slow)])
def url(request, tmp_path_factory):
    if request.param == "server":
        with qdrant_server() as (address, _):
            yield address
    else:
        yield str(tmp_path_factory.mktemp("edge") / "shard") if request.param == "edge" else request.param


@pytest.fixture(scope="module")
def writer(url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    return stored(engine_of(url, folder), folder)


def nearest(rows, queries, num):
    """Exact neighbors among rows."""
    squared, found = faiss.knn(queries, np.ascontiguousarray(ALL[rows]), num)
    return rows[found], np.sqrt(squared)


def test_an_exact_search_finds_the_rows_and_distances_of_an_exact_index(writer):
    found = opened(writer).search(QUERIES, 20, probes=1, refine=0)
    rows, distances = nearest(np.arange(len(ALL)), QUERIES, 20)
    assert found.rows.tolist() == rows.tolist()
    assert np.allclose(found.distances, distances, rtol=1e-6, atol=0)
    assert found.rows.dtype == np.int64 and found.distances.dtype == np.float32


def test_rows_of_equal_distance_are_in_their_order(writer):
    found = opened(writer).search(ALL[[5, 307]], 10, probes=1, refine=0)
    assert found.rows[:, :2].tolist() == [[5, 307]] * 2


def allowed_by(among):
    is_allowed = np.ones(len(CATALOGUE), bool)
    if among.near is not None:
        degrees = (CATALOGUE.table[name].to_numpy() for name in ("latitude", "longitude"))
        is_allowed &= haversine_m(*degrees, among.near.latitude, among.near.longitude) <= among.near.radius_m
    if among.heading is not None:
        is_allowed &= looks_toward(CATALOGUE.heading, among.heading)
    return np.flatnonzero(is_allowed)


HEADINGS = [(0, 40), (5, 5), (350, 30), (-170, 30), (500, 179), (90, 180)]
RESTRICTIONS = [
    *(Restriction(Near(*center, 900.0)) for center in CENTERS),
    *(Restriction(None, HeadingRange(*each)) for each in HEADINGS),
    Restriction(Near(*CENTERS[1], 1200.0), HeadingRange(10, 90)),
    Restriction(Near(0.0, 0.0, 1e8)),
]


@pytest.mark.parametrize("among", RESTRICTIONS, ids=str)
def test_a_restriction_allows_the_images_that_it_allows_in_an_index_without_an_engine(writer, among):
    store, rows = opened(writer), allowed_by(among)
    found = store.search(QUERIES, 20, probes=1, refine=0, among=among)
    num = min(20, len(rows))
    assert 0 < len(rows) < len(ALL) or among.heading == HeadingRange(90, 180)
    assert store.count(among) == len(rows)
    assert found.rows[:, :num].tolist() == nearest(rows, QUERIES, num)[0].tolist()
    assert (found.rows[:, num:] == -1).all() and np.isposinf(found.distances[:, num:]).all()


def test_a_circle_reaches_to_its_radius_and_a_centimeter_less_does_not(writer):
    latitude, longitude = (CATALOGUE.table[name].to_numpy()[:1] for name in ("latitude", "longitude"))
    radius = float(haversine_m(latitude, longitude, *CENTERS[0])[0])
    store = opened(writer)
    within = [
        0 in store.search(ALL[:1], 400, probes=1, refine=0, among=Restriction(Near(*CENTERS[0], each))).rows
        for each in (radius - 0.01, radius)
    ]
    assert within == [False, True]


def test_each_query_has_its_own_restriction(writer):
    found = opened(writer).search(QUERIES, 3, probes=1, refine=0, among=RESTRICTIONS[:5])
    for query, among, rows in zip(QUERIES, RESTRICTIONS, found.rows, strict=False):
        assert rows.tolist() == nearest(allowed_by(among), query[None], 3)[0][0].tolist()


def test_removed_rows_and_parts_of_no_generation_are_not_found(writer):
    nearest_rows = nearest(np.arange(300), QUERIES[:1], 40)[0][0]
    store = opened(writer, [PARTS["first"]], np.sort(nearest_rows[:30]))
    assert store.count() == 270
    found = store.search(QUERIES[:1], 10, probes=1, refine=0)
    assert found.rows[0].tolist() == nearest_rows[30:].tolist()


def test_a_search_for_more_rows_than_there_are_returns_those_there_are(writer):
    found = opened(writer, removed=[3]).search(QUERIES, 1000, probes=1, refine=0)
    assert np.sort(found.rows).tolist() == [[row for row in range(400) if row != 3]] * len(QUERIES)


def test_points_know_their_image(writer):
    assert writer.collection.parts() == {part_key(each.engine_id): each.rows for each in PARTS.values()}


def test_a_killed_command_resumes(url, tmp_path):
    engine = engine_of(own_url(url, tmp_path), tmp_path)
    values, catalogue = np.random.default_rng(0).standard_normal((1200, 4)).astype(np.float32), images(1200, 7)
    writer, mine = EngineWriter(connect(engine, tmp_path), engine, "encoder"), part("mine", 1200)
    with pytest.raises(ZeroDivisionError):
        writer.add(mine.engine_id, _Killed(values), catalogue)
    assert writer.collection.parts() == {part_key(mine.engine_id): 1000}
    writer.add(mine.engine_id, Rows(values, unread=1000), catalogue)
    opened(writer, [mine]).check()


def test_points_of_which_the_first_were_deleted_are_stored_again(tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    values, catalogue = np.random.default_rng(0).standard_normal((2500, 4)).astype(np.float32), images(2500, 7)
    writer, mine = EngineWriter(connect(engine, tmp_path), engine, "encoder"), part("mine", 2500)
    writer.add(mine.engine_id, Rows(values), catalogue)
    writer.collection.delete_points([point_id(part_key(mine.engine_id), row) for row in range(1000)])
    writer.add(mine.engine_id, Rows(values), catalogue)
    assert writer.collection.parts() == {part_key(mine.engine_id): 2500}


def test_points_of_a_killed_command_are_taken_only_if_their_descriptors_are_the_same(tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    writer, catalogue = EngineWriter(connect(engine, tmp_path), engine, "encoder"), images(1000, 7)
    form = PartFormat({}, None, 10**6, writer=writer)

    def written(values):
        shutil.rmtree(tmp_path / "part_00000", ignore_errors=True)
        (tmp_path / "part_00000").mkdir()
        rows = NewRows(Rows(values), lambda first, last: catalogue.take(np.arange(first, last)))
        return write_part(tmp_path / "part_00000", (0, 1000), rows, form)

    values = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    first, same, other = written(values), written(values), written(values + 100)
    assert first.engine_id == same.engine_id != other.engine_id
    found = opened(writer, [other]).search(values[:5] + 100, 1, probes=1, refine=0)
    assert found.rows[:, 0].tolist() == [0, 1, 2, 3, 4] and found.distances.max() < 1e-4


class Recorded(EdgeCollection):
    """A collection that records the number of queries and of points of each search."""

    def search(self, queries, filters, count, **options):
        self.searches = [*getattr(self, "searches", []), (len(queries), count)]
        return super().search(queries, filters, count, **options)


def test_points_of_another_command_that_adds_images_are_passed_over_at_once(tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    values = {"first": DESCRIPTORS["first"], "second": DESCRIPTORS["second"] / 100}  # nearer to the origin
    stored(engine, tmp_path, values)
    writer = EngineWriter(Recorded(tmp_path / "edge"), engine, "encoder")
    found = opened(writer, [PARTS["first"]]).search(np.zeros((1, 8), np.float32), 10, probes=1, refine=0)
    assert found.rows[0].tolist() == np.argsort(np.linalg.norm(values["first"], axis=1))[:10].tolist()
    assert writer.collection.searches == [(1, 10), (1, 20)]


def test_long_queries_are_sent_a_few_at_a_time(tmp_path):
    class Nothing(Recorded):
        def search(self, queries, filters, count, **options):
            self.searches = [*getattr(self, "searches", []), len(queries)]
            return [[]] * len(queries)

    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    writer = EngineWriter(Nothing(tmp_path / "edge"), engine, "encoder")
    assert (opened(writer).search(np.zeros((5, 2**18), np.float32), 3, probes=1, refine=0).rows == -1).all()
    assert writer.collection.searches == [2, 2, 1]


def test_an_engine_that_refuses_a_search_is_no_error_of_the_query(tmp_path):
    with qdrant_server() as (url, _):
        engine = engine_of(url, tmp_path)
        store = opened(EngineWriter(connect(engine, tmp_path), engine, "encoder"))
        with pytest.raises(ConnectionError, match=r"^There is no collection index_\d+ of the Qdrant server"):
            store.search(QUERIES, 3, probes=1, refine=0)


def test_a_disk_without_room_is_one_sentence(tmp_path, monkeypatch):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    writer = stored(engine, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2e8))
    with pytest.raises(OSError, match=r"has room for 200 MB, and Qdrant Edge needs 268 MB: make room, and run"):
        writer.add("part_00002 0", Rows(DESCRIPTORS["first"]), CATALOGUES["first"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**28))
    with pytest.raises(OSError, match=r"has room for 268 MB, and Qdrant Edge needs "):  # that of its files, too
        writer.collection.optimize()
    writer.collection.delete_part("0" * 16)
    opened(writer).check()


@pytest.mark.parametrize(
    ("quantization", "refine", "oversampling"),
    [("none", 0, None), ("int8", 0, 2.0), ("binary", 0, 4.0), ("int8", 200, 10.0)],
)
def test_only_a_search_among_restrictions_compares_all_points(quantization, refine, oversampling, tmp_path):
    with qdrant_server() as (url, calls):
        writer = stored(engine_of(url, tmp_path, engine_quantization=quantization), tmp_path)
        store = replace(opened(writer), is_exact=False)
        store.search(QUERIES, 20, probes=1, refine=refine)
        store.search(QUERIES[:1], 20, probes=1, refine=refine, among=RESTRICTIONS[0])
    params = [search["params"] for search in calls.searches]
    assert [each["exact"] for each in params] == [*([False] * len(QUERIES)), True]
    quantizations = [each.get("quantization", {}) for each in params]
    assert [each.get("oversampling") for each in quantizations] == [oversampling] * len(params)
    assert quantizations[-1].get("ignore", False) == (oversampling is not None)


@pytest.mark.slow
def test_a_process_that_is_killed_by_the_system_resumes_where_it_was(tmp_path):
    command = [sys.executable, adding_points.__file__, str(tmp_path / "edge")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        started = [process.stdout.readline() for _ in range(4)]
        process.kill()
    assert started == ["0\n", "1000\n", "2000\n", "3000\n"]
    writer = adding_points.writer(tmp_path / "edge")
    assert writer.collection.parts()[part_key(adding_points.PART)] >= 3000
    writer.add(adding_points.PART, adding_points.Rows(unread=3000), adding_points.images())
    hits = writer.collection.search(QUERIES, [None] * len(QUERIES), 20, exact=True, oversampling=None)
    rows = [[row for _, row in keys_and_rows(each)] for each in hits]
    assert rows == faiss.knn(QUERIES, adding_points.VALUES, 20)[1].tolist()


def own_url(url, folder):
    """Return a URL of the same kind, of which nothing is stored yet."""
    return str(folder / "edge") if url.startswith("/") else url


class _Killed(Rows):
    """Rows of which those after the first thousand cannot be read."""

    def take(self, rows):
        return super().take(rows) if rows.max() < 1000 else 1 / 0


def test_points_of_removed_rows_may_be_there_or_not(url, tmp_path):
    writer = stored(engine_of(own_url(url, tmp_path), tmp_path), tmp_path)
    opened(writer, removed=[305, 399]).check()
    key = part_key(PARTS["second"].engine_id)
    writer.collection.delete_points([point_id(key, 5), point_id(key, 99)])
    opened(writer, removed=[305, 399]).check()
    with pytest.raises(ValueError, match="1 of 399 images of index are missing"):
        opened(writer, removed=[305]).check()


def test_an_index_is_refused_another_collection_and_one_that_lacks_points(url, tmp_path):
    engine = engine_of(own_url(url, tmp_path), tmp_path)
    writer = EngineWriter(connect(engine, tmp_path), engine, "encoder")
    with pytest.raises(ValueError, match=r"There is no .*restore it, or build the index anew"):
        opened(writer).check()
    stored(engine, tmp_path, {"first": DESCRIPTORS["first"]})
    with pytest.raises(ValueError, match=r"100 of 400 images of .* are missing in the "):
        opened(writer).check()
    with pytest.raises(ValueError, match=r"Descriptors of 3 dimensions do not fit into .*, which has 8"):
        writer.add("other", Rows(DESCRIPTORS["second"][:, :3]), CATALOGUES["second"])
    other = EngineWriter(writer.collection, replace(engine, owner="another"), "encoder")
    with pytest.raises(ValueError, match="Another place index, or one of another encoder, is in "):
        other.add("other", Rows(DESCRIPTORS["second"]), CATALOGUES["second"])
    assert writer.collection.parts() == {part_key(PARTS["first"].engine_id): 300}


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_quantized_rows_are_compared_again_with_the_original_descriptors(quantization, tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path, engine_quantization=quantization)
    writer = EngineWriter(connect(engine, tmp_path), engine, "encoder")
    values = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    writer.add(PARTS["first"].engine_id, Rows(values), CATALOGUES["first"])
    store = replace(opened(writer, [PARTS["first"]]), is_exact=False)
    found = store.search(values[:9] + 0.01, 20, probes=1, refine=0)
    assert found.rows[:, 0].tolist() == list(range(9))
    assert np.allclose(found.distances[:, 0], 0.08, rtol=1e-4)  # 0.01 sqrt(64)


def test_two_stores_of_one_process_share_what_one_process_can_open(tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    first = opened(stored(engine, tmp_path))
    second = opened(EngineWriter(connect(engine, tmp_path), engine, "encoder"))
    assert (
        first.search(QUERIES, 3, probes=1, refine=0).rows.tolist()
        == second.search(QUERIES, 3, probes=1, refine=0).rows.tolist()
    )


def test_a_store_that_takes_the_place_of_a_removed_one_is_opened(tmp_path):
    engine = engine_of(str(tmp_path / "edge"), tmp_path)
    removed = stored(engine, tmp_path)
    shutil.rmtree(tmp_path / "edge")
    new = stored(engine, tmp_path, {"first": DESCRIPTORS["first"]})
    assert [len(each.collection.parts()) for each in (removed, new)] == [2, 1]


def test_a_search_by_heading_or_place_needs_some_that_are_known(writer):
    store = opened(writer, [part("first", 300, num_degrees=0, num_headings=0)])
    with pytest.raises(ValueError, match="`heading` cannot be used: no heading is known in index"):
        store.search(QUERIES, 3, probes=1, refine=0, among=Restriction(None, HeadingRange(0, 10)))
    with pytest.raises(ValueError, match="`near` cannot be used: no latitude and longitude is known in index"):
        store.count(Restriction(Near(0, 0, 10)))
