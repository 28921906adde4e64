"""Several training sets as one: places, zones and what each set knows."""

import numpy as np
import pyarrow as pa
import pytest
from running import build_catalogue

from progeo.cli import main
from progeo.commands.dataset_merge import merge_datasets
from progeo.config.datasets import MergeSettings
from progeo.datasets.merge import merge_catalogues
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import positions_m
from progeo.places.named_places import named_places
from progeo.places.options import CellOptions
from progeo.remote_files import RemotePath

CELLS = CellOptions(
    cell_side_m=10,
    heading_bin_deg=360,
    groups_per_side=2,
    groups_per_heading=1,
    min_images_per_class=2,
    num_groups=None,
)


def with_column(catalogue, name, values):
    return Catalogue(catalogue.folder, catalogue.table.append_column(name, pa.array(values)))


@pytest.fixture
def named(tmp_path):
    """Two places of London and an image of none."""
    names = [f"@{east}@5710000@30@U@.jpg" for east in (700000, 700001, 700050)]
    return with_column(build_catalogue(tmp_path / "sets/gsv", names), "place", ["London/7", "London/8", None])


@pytest.fixture
def nameless(tmp_path):
    """Two images of a cell, two of its neighbor and one alone."""
    names = [f"@{east}@4180000@10@S@.jpg" for east in (550001, 550009, 550011, 550012, 550040)]
    return with_column(build_catalogue(tmp_path / "sets/sf/train", names), "condition", [*"abcde"])


def test_images_keep_their_files_zones_and_places_and_others_get_the_places_of_their_cells(named, nameless, tmp_path):
    merged = merge_catalogues([nameless, named], CELLS)
    assert merged.folder == tmp_path / "sets"
    assert merged.table["path"].to_pylist() == [
        *(f"gsv/{name}" for name in named.table["path"].to_pylist()),
        *(f"sf/train/{name}" for name in nameless.table["path"].to_pylist()[:4]),
    ]
    cells = ["cells/0/10_550000_4180000_0"] * 2 + ["cells/1/10_550010_4180000_0"] * 2
    assert sorted(merged.places.to_pylist()) == sorted(["gsv/London/7", "gsv/London/8", "", *cells])
    assert merged.zone.tolist() == [30] * 3 + [10] * 4
    assert merged.east.tolist() == [*named.east, *nameless.east[:4]]
    assert merged.conditions.tolist() == ["", "", "", *"abcd"]
    assert merged.degrees[0].round(1).tolist() == [51.5] * 3 + [37.8] * 4
    (together,) = positions_m(merged)
    assert np.hypot(*(together[0] - together[-1])) > 1e6
    places = named_places(merged, min_images=1)
    regions = dict(zip(places.names.to_pylist(), places.regions.tolist(), strict=True))
    assert regions["gsv/London/7"] == regions["gsv/London/8"]
    assert len(set(regions.values())) == 3


def test_a_merged_set_is_merged_again_and_a_set_alone_has_its_name_in_front(named, nameless, tmp_path, capsys):
    for catalogue, name in ((named, "gsv"), (nameless, "sf/train")):
        catalogue.save(tmp_path / f"sets/{name}.arrow")
    cells = [f"--cells.{name}={'null' if value is None else value}" for name, value in vars(CELLS).items()]
    out = tmp_path / "out"
    main(["dataset", "merge", str(nameless.folder), *cells, "--out", str(out / "sf")])
    assert "\nexcluded 1 image in no class of the first groups\n" in capsys.readouterr().err
    main(["dataset", "merge", str(named.folder), str(out / "sf"), "--out", str(out / "all")])
    assert {path.name for path in out.iterdir()} == {"sf.arrow", "all.arrow"}
    merged = read_catalogue(out / "all")
    originals = [catalogue.path(row) for catalogue in (named, nameless) for row in range(len(catalogue))]
    assert [merged.path(row) for row in range(len(merged))] == originals[:-1]
    assert set(merged.places.to_pylist()) == {
        *("gsv/London/7", "gsv/London/8", ""),
        *("sf/train/cells/0/10_550000_4180000_0", "sf/train/cells/1/10_550010_4180000_0"),
    }
    alone = merge_catalogues([named], CELLS)
    assert alone.places.to_pylist() == ["gsv/London/7", "gsv/London/8", ""]


def test_equal_cells_of_two_zones_are_two_places_also_if_each_city_was_merged_alone_first(tmp_path):
    cities = [[f"{zone}/@550001@4180000@{zone}@S@{number}@.jpg" for number in range(2)] for zone in (10, 30)]
    merged = [merge_catalogues([build_catalogue(tmp_path / "msls", names)], CELLS) for names in cities]
    assert merge_catalogues(merged, CELLS).places.to_pylist() == [
        *2 * ["msls/cells/0/10_550000_4180000_0"],
        *2 * ["msls/cells/0/30_550000_4180000_0"],
    ]


def test_an_image_in_two_sets_is_refused(named):
    with pytest.raises(ValueError, match=r"^3 images are in the given folders twice"):
        merge_catalogues([named, named], CELLS)
    with pytest.raises(ValueError, match=r"^Name the `folders` to merge"):
        merge_datasets((), out=named.folder, settings=MergeSettings())


@pytest.mark.parametrize(
    ("min_images", "names", "rows", "offsets"),
    [(1, ["a/1", "a/2", "b"], [1, 4, 0, 3, 5, 2], [0, 2, 5, 6]), (3, ["a/2"], [0, 3, 5], [0, 3])],
)
def test_places_are_sorted_by_name_with_enough_images(tmp_path, min_images, names, rows, offsets):
    files = [f"@{number}@1@.jpg" for number in range(7)]
    catalogue = with_column(
        build_catalogue(tmp_path / "set", files), "place", ["a/2", "a/1", "b", "a/2", "a/1", "a/2", ""]
    )
    places = named_places(catalogue, min_images=min_images)
    assert (places.names.to_pylist(), places.rows.tolist(), places.offsets.tolist()) == (names, rows, offsets)
    assert places.regions.tolist() == [0, 0, 1][: len(names)]
    with pytest.raises(ValueError, match=r"No place of .* has `min_images_per_class` = 4 images, one has 3"):
        named_places(catalogue, min_images=4)
    with pytest.raises(ValueError, match=r"has no column of places: import it with `progeo dataset import gsv-c"):
        named_places(build_catalogue(tmp_path / "set", files), min_images=1)


def test_images_behind_urls_are_merged_as_those_of_folders(named, nameless):
    there = RemotePath("s3://bucket/sf/train")
    for folder, root, paths in (
        (RemotePath("s3://bucket/gsv"), "s3://bucket", ("gsv/@700000", "sf/train/@550001")),
        (named.folder, "/", (f"{str(named.folder)[1:]}/@700000", "s3://bucket/sf/train/@550001")),
    ):
        merged = merge_catalogues([Catalogue(folder, named.table), Catalogue(there, nameless.table)], CELLS)
        names = merged.table["path"].to_pylist()
        assert str(merged.folder) == root
        assert (names[0].startswith(paths[0]), names[3].startswith(paths[1])) == (True, True)
        assert str(merged.path(3)) == f"s3://bucket/sf/train/{nameless.name(0)}"
        assert merged.east[3] == 550001
