"""Several folders as one catalogue."""

import zipfile

import numpy as np
import pyarrow as pa
import pytest

from progeo.commands.dataset import scan_dataset
from progeo.datasets.together import index_together
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import degrees_of, positions_m
from progeo.remote_files import RemotePath


def image(east, zone=33, letter="S"):
    return f"@{east}@4000000@{zone}@{letter}@@@@@@@@@@@.jpg"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def folders(tmp_path):
    touch(tmp_path / "data/a", image(500001), f"x/{image(500002)}")
    touch(tmp_path / "data/b", image(500003))
    return [tmp_path / "data/a", tmp_path / "data/b"]


def test_images_of_several_folders_have_paths_below_the_folder_that_holds_them(folders, tmp_path):
    scan_dataset(folders, out=tmp_path / "all")
    together = read_catalogue(tmp_path / "all")
    assert together.folder == tmp_path / "data"
    assert together.table["path"].to_pylist() == [f"a/{image(500001)}", f"a/x/{image(500002)}", f"b/{image(500003)}"]
    assert together.east.tolist() == [500001, 500002, 500003]
    assert together.table.column_names == ["path", "east", "north", "zone", "heading"]
    assert all(together.path(row).is_file() for row in range(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.arrow", "data"]


@pytest.mark.parametrize("change", ["a folder", "a list"])
def test_a_change_of_one_of_the_folders_is_noticed(change, folders, tmp_path):
    scan_dataset(folders, out=tmp_path / "all")
    if change == "a folder":
        touch(folders[0], f"x/{image(500009)}")
    else:
        (tmp_path / "data/b_images_paths.txt").write_text(image(500003), encoding="utf-8")
    with pytest.raises(ValueError, match=r"changed since .*: run `progeo dataset scan \S+/a \S+/b --out \S+all` again"):
        read_catalogue(tmp_path / "all")


def test_columns_of_catalogues_are_kept_and_positions_stay_known(folders, tmp_path):
    columns = {"zone": np.array([33], np.int8), "heading": [30.0], "latitude": [36.2], "longitude": [15.1]}
    texts = {name: pa.array([name], pa.large_string()) for name in ("condition", "time", "place")}
    touch(tmp_path / "photos", "1.jpg")
    Catalogue(
        tmp_path / "photos",
        pa.table(
            {"path": pa.array(["1.jpg"], pa.large_string()), "east": [509e3], "north": [4006e3], **columns, **texts}
        ),
    ).save(tmp_path / "imported.arrow", {"root": str(tmp_path / "photos")})
    scan_dataset((folders[1], tmp_path / "imported"), out=tmp_path / "all")
    together = read_catalogue(tmp_path / "all")
    assert together.table["path"].to_pylist() == [f"data/b/{image(500003)}", "photos/1.jpg"]
    assert together.conditions.tolist() == ["", "condition"]
    assert together.table["time"].to_pylist() == ["", "time"]
    assert together.table["place"].to_pylist() == ["", "photos/place"]
    np.testing.assert_array_equal(degrees_of(together)[:, 0], degrees_of(read_catalogue(folders[1]))[:, 0])
    np.testing.assert_array_equal(degrees_of(together)[:, 1], [36.2, 15.1])
    (tmp_path / "imported.arrow").touch()
    with pytest.raises(ValueError, match=r"imported.arrow changed since"):
        read_catalogue(tmp_path / "all")


def test_images_of_several_zones_keep_them(tmp_path):
    touch(tmp_path / "a", image(500001, 33))
    touch(tmp_path / "b", image(500001, 34))
    scan_dataset((tmp_path / "a", tmp_path / "b"), out=tmp_path / "all")
    together = read_catalogue(tmp_path / "all")
    assert together.zone.tolist() == [33, 34]
    assert np.ptp(positions_m(together)[0][:, 0]) == 1e6


def test_a_folder_and_a_url_make_one_catalogue(folders, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr(image(500007), b"there")
    index_together([folders[1], RemotePath(f"zip://::file://{tmp_path}/two.zip")], tmp_path / "all")
    together = read_catalogue(tmp_path / "all")
    assert together.path(0) == folders[1].resolve() / image(500003)
    assert together.full_paths().to_pylist() == [str(together.path(row)) for row in range(2)]
    assert together.path(1).read_bytes() == b"there"
    np.testing.assert_array_equal(degrees_of(together)[:, 0], degrees_of(read_catalogue(folders[1]))[:, 0])
    assert 0 < degrees_of(together)[1, 1] - degrees_of(together)[1, 0] < 1e-4
    touch(folders[1], image(500009))
    with pytest.raises(ValueError, match=r"data/b changed since"):
        read_catalogue(tmp_path / "all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((("a", "a"), "all"), "2 images are in the given folders twice"),
        ((("a", "b"), None), "Name `out`"),
        ((("memory://nowhere",), None), "Name `out`"),
        (((), "all"), "Name the `folders`"),
    ],
)
def test_folders_that_make_no_catalogue_are_refused(arguments, words, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "data")
    given, out = arguments
    with pytest.raises(ValueError, match=words):
        scan_dataset(given, out=out and tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_listing_of_several_folders_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="A `listing` is of one folder, got 2"):
        scan_dataset(folders, out=tmp_path / "all", listing=(tmp_path / "list.txt",))
