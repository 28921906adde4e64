"""A place index of images behind a URL."""

import fsspec
import pytest
from indexes import command

from progeo.commands.dataset import scan_dataset
from progeo.localization.place_index import open_place_index
from progeo.places.catalogue import read_catalogue


@pytest.fixture
def remote(city, tmp_path):
    system = fsspec.filesystem("memory")
    system.put(str(city / "test/database"), "/progeo_index/database", recursive=True)
    scan_dataset(("memory://progeo_index/database",), out=tmp_path / "database")
    yield tmp_path / "database"
    system.rm("/progeo_index", recursive=True)


def test_an_index_of_images_behind_a_url_localizes_as_one_of_the_folder(city, remote, encoder, cache, tmp_path):
    command("index build", cache, folder=remote, encoder=encoder, out=tmp_path / "remote")
    command("index build", cache, folder=city / "test/database", encoder=encoder, out=tmp_path / "local")
    there, here = (open_place_index(tmp_path / name) for name in ("remote", "local"))
    photos = read_catalogue(city / "test/database")
    found, expected = (index.localize(str(photos.path(3)), top=3)[0].matches for index in (there, here))
    assert [match.distance for match in found] == [match.distance for match in expected]
    assert found[0].path == f"memory://progeo_index/database/{photos.name(3)}"
    assert found[0].path.rpartition("/")[2] == expected[0].path.rpartition("/")[2]
    assert {str(there.catalogue.path(row)) for row in range(len(photos))} == {
        f"memory://progeo_index/database/{photos.name(row)}" for row in range(len(photos))
    }
