"""Files behind URLs, in memory, in archives and of a web server."""

import pickle
import tarfile
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.tar import TarFileSystem
from PIL import Image

from progeo import remote_files
from progeo.data.datasets import CatalogueImages
from progeo.data.decode import read_image, read_shape
from progeo.data.loaders import build_loader, read_batches
from progeo.files import each_file
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.paths import find_paths
from progeo.places.scanning import index_catalogue
from progeo.remote_files import RemotePath, is_remote, name_in, path_in, path_of, shared_folder

NAMES = ["@500000@4000000@33@S@@@@@30@@@@@a b#%@.jpg", "sub/@500009@4000000@33@S@@@@@60@@@@@@.jpg"]


@pytest.fixture
def city(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "city" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8 + number), (90, 60 * number, 10)).save(tmp_path / "city" / name)
    (tmp_path / "city/.hidden.jpg").touch()
    (tmp_path / "city/notes.txt").touch()
    return tmp_path / "city"


@pytest.fixture
def memory(city):
    system = fsspec.filesystem("memory")
    system.put(str(city), "/progeo_test/city", recursive=True)
    yield "memory://progeo_test/city"
    system.rm("/progeo_test", recursive=True)


def as_tar(city):
    with tarfile.open(city.parent / "city.tar", "w") as tar:
        tar.add(city, "streets")
    return f"tar://streets::file://{city.parent}/city.tar"


def check_scan(url, city):
    """A URL has the images that the folder has, whose pixels worker processes decode."""
    local, remote = city.parent / "local", city.parent / "remote"
    index_catalogue(city, local)
    index_catalogue(RemotePath(url), remote)
    here, there = read_catalogue(local), read_catalogue(remote)
    assert there.table.equals(here.table)
    assert there.folder == RemotePath(url)
    loader = build_loader(CatalogueImages(there), [[0], [1]], num_workers=2)
    for row, pixels in enumerate(read_batches(loader)):
        assert torch.equal(pixels[0], read_image(here.path(row)))
        assert there.path(row).stat().st_size == here.path(row).stat().st_size
        assert there.path(row).read_bytes() == here.path(row).read_bytes()
        assert read_shape(there.path(row)) == read_shape(here.path(row))
    assert path_of(there.full_paths()[0].as_py()).read_bytes() == here.path(0).read_bytes()


@pytest.mark.parametrize("kind", ["file", "memory", "tar"])
def test_images_behind_a_url_are_those_of_the_folder(kind, city, memory):
    check_scan({"file": f"file://{city}", "memory": memory, "tar": as_tar(city)}[kind], city)


def test_threads_open_an_archive_once_and_each_reads_its_own_file(city, monkeypatch):
    folder = RemotePath(as_tar(city))
    content = {name: (city / name).read_bytes() for name in NAMES}
    opened = []
    monkeypatch.setattr(TarFileSystem, "_index", lambda self, index=TarFileSystem._index: opened.append(index(self)))
    names = NAMES * 200
    (folder / NAMES[0]).read_bytes()
    found = each_file(lambda name: (folder / name).read_bytes(), names, total=len(names))
    assert list(found) == [content[name] for name in names]
    assert len(opened) == 1


@contextmanager
def web_server(folder, handler=SimpleHTTPRequestHandler):
    """A web server of a folder, by its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_of_a_web_server_are_those_of_the_folder(kind, city):
    as_tar(city)
    with web_server(city.parent) as root:
        check_scan({"folder": f"{root}/city", "tar": f"tar://streets::{root}/city.tar"}[kind], city)


@pytest.mark.slow
def test_a_list_of_urls_names_the_images_of_a_web_server(city):
    index_catalogue(city, city.parent / "local")
    with web_server(city.parent) as root:
        table = read_catalogue(city.parent / "local").table
        urls = Catalogue(RemotePath(f"{root}/city"), table).full_paths().to_pylist()
        assert "%" in urls[0]
        (city.parent / "list.txt").write_text("\n".join(urls), encoding="utf-8")
        index_catalogue(RemotePath(f"{root}/city"), city.parent / "listed", listings=[city.parent / "list.txt"])
        assert read_catalogue(city.parent / "listed").table.equals(table)


@pytest.mark.slow
def test_a_file_of_a_web_server_that_fails_is_not_missing(city, monkeypatch):
    monkeypatch.setattr(remote_files, "_WAITS_S", (0.0, 0.0))
    failures = []

    class Failing(SimpleHTTPRequestHandler):
        def send_head(self):
            if not failures:
                return super().send_head()
            self.send_error(failures.pop())
            return None

    with web_server(city, Failing) as root:
        path = RemotePath(root) / NAMES[0]
        failures += [503] * 4  # two requests of two attempts
        assert path.stat().st_size == (city / NAMES[0]).stat().st_size
        failures += [503] * 6
        with pytest.raises(OSError, match=r"cannot be reached: 503"):
            path.is_file()
        assert not (RemotePath(root) / "gone.jpg").is_file()


@pytest.mark.parametrize(
    ("folder", "name", "url"),
    [
        ("s3://bucket/city", "a/@1@.jpg", "s3://bucket/city/a/@1@.jpg"),
        ("s3://bucket/city/", "a.jpg", "s3://bucket/city/a.jpg"),
        ("gs://bucket", "a.jpg", "gs://bucket/a.jpg"),
        ("https://host/city", "a b#?%.jpg", "https://host/city/a%20b%23%3F%25.jpg"),
        ("tar://::s3://bucket/x.tar", "a b.jpg", "tar://a b.jpg::s3://bucket/x.tar"),
        ("zip://in::simplecache::https://host/x.zip", "#.jpg", "zip://in/#.jpg::simplecache::https://host/x.zip"),
        ("simplecache::s3://bucket/city", "a.jpg", "simplecache::s3://bucket/city/a.jpg"),
        ("s3://bucket/city", "gs://other/b.jpg", "gs://other/b.jpg"),
    ],
)
def test_a_name_goes_where_the_path_of_a_url_ends(folder, name, url):
    path = path_in(RemotePath(folder), name)
    assert (str(path), path.name) == (url, url.split("::")[0].split("/")[-1] if "cache" not in folder else path.name)
    assert pickle.loads(pickle.dumps(path)) == path


def test_local_paths_stay_local():
    assert not any(map(is_remote, ["/data/city", "city", "C://city", "a:b/c.jpg", "a::b"]))
    assert path_of("/data/city") == Path("/data/city")
    assert path_in(Path("/data"), "a.jpg") == Path("/data/a.jpg")
    assert path_in(RemotePath("s3://bucket"), "/data/a.jpg") == Path("/data/a.jpg")


@pytest.mark.parametrize(
    ("folders", "root", "names"),
    [
        (["/data/a", "/data/b/c"], "/data", ["a", "b/c"]),
        (["s3://bucket/a", "s3://bucket/b"], "s3://bucket", ["a", "b"]),
        (["s3://one/a", "s3://two/b"], "s3://", ["one/a", "two/b"]),
        (["https://host/a%20b", "https://host/c"], "https://host", ["a b", "c"]),
        (["tar://a::s3://b/x.tar", "tar://c::s3://b/x.tar"], "tar://::s3://b/x.tar", ["a", "c"]),
        (["tar://a::s3://b/x.tar", "tar://a::s3://b/y.tar"], "/", ["tar://a::s3://b/x.tar", "tar://a::s3://b/y.tar"]),
        (["/data/a", "s3://bucket/b"], "/", ["data/a", "s3://bucket/b"]),
    ],
)
def test_the_folder_that_holds_all_folders(folders, root, names):
    paths = list(map(path_of, folders))
    shared = shared_folder(paths)
    assert str(shared) == root
    assert [name_in(shared, path) for path in paths] == names
    assert [str(path_in(shared, name)) for name in names] == folders


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (lambda: RemotePath("memory://progeo_test/none.jpg").read_bytes(), FileNotFoundError, "There is no memory://"),
        (lambda: read_image(RemotePath("memory://progeo_test/none.jpg")), FileNotFoundError, "There is no memory://"),
        (
            lambda: RemotePath("nowhere://a/b").stat(),
            ValueError,
            "nowhere://a/b: nowhere is none of the protocols abfs,",
        ),
        (
            lambda: RemotePath("memory://progeo_test") / "a::b.jpg",
            ValueError,
            "holds 'a::b.jpg', which no URL can name",
        ),
        (lambda: RemotePath("https://host/city?sig=1").entries(), ValueError, "no folder: what follows"),
        (lambda: RemotePath("tar://::a.tar"), ValueError, r"a.tar is none of .* is called tar://::file:///"),
        (lambda: RemotePath("ftp://me:secret@host/a"), ValueError, "must not hold a password"),
        (lambda: index_catalogue(RemotePath("memory://progeo_test/none")), FileNotFoundError, "There is no memory://"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(act, kind, words):
    with pytest.raises(kind, match=words):
        act()


def test_an_image_that_cannot_be_decoded_is_named_by_its_url(memory):
    fsspec.filesystem("memory").pipe_file("/progeo_test/city/bad.jpg", b"no image")
    with pytest.raises(
        ValueError, match=r"The image memory://progeo_test/city/bad.jpg cannot be decoded: it is none of"
    ):
        read_image(RemotePath(f"{memory}/bad.jpg"))


def test_names_that_no_url_can_hold_are_skipped(memory, caplog):
    fsspec.filesystem("memory").pipe_file("/progeo_test/city/a::b@.jpg", b"")
    (names,) = find_paths(RemotePath(memory)).batches
    assert names.to_pylist() == NAMES
    assert "1 names with ::, which no URL can hold, are skipped, such as a::b@.jpg" in caplog.text


def test_a_file_of_an_archive_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "city.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(2001))
        archive.writestr("image.jpg", bytes(2000))
    monkeypatch.setattr(remote_files, "_MAX_MEMBER_BYTES", 2000)
    assert len(RemotePath(f"zip://image.jpg::file://{tmp_path}/city.zip").read_bytes()) == 2000
    with pytest.raises(OSError, match=r"city\.zip has 2,001 bytes, and a file in an archive at most 2,000"):
        read_image(RemotePath(f"zip://bomb.jpg::file://{tmp_path}/city.zip"))


def test_a_failed_request_is_repeated_a_few_times(memory, monkeypatch):
    class Failing(fsspec.get_filesystem_class("memory")):
        protocol, cachable, left = "failing", False, 0

        def cat_file(self, path, **more):
            Failing.left -= 1
            if Failing.left >= 0:
                raise ConnectionError("reset by peer")
            return b"content"

    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(remote_files, "_PROTOCOLS", frozenset(["failing"]))
    monkeypatch.setattr(remote_files, "_WAITS_S", (0.0, 0.0))
    Failing.left = 2
    assert RemotePath("failing://a").read_bytes() == b"content"
    Failing.left = 3
    with pytest.raises(OSError, match="failing://a cannot be reached: reset by peer"):
        RemotePath("failing://a").read_bytes()


@pytest.mark.parametrize(
    ("given", "nanoseconds"),
    [
        (1.5, 1_500_000_000),
        (datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), 2_000_000_000),
        ("1970-01-01T00:00:03Z", 3_000_000_000),
        ("yesterday", 0),
        (None, 0),
    ],
)
def test_times_of_all_file_systems_are_nanoseconds(given, nanoseconds):
    assert remote_files._nanoseconds(given) == nanoseconds


def test_a_catalogue_of_a_url_is_small_when_it_is_pickled(memory, tmp_path):
    index_catalogue(RemotePath(memory), tmp_path / "remote")
    catalogue = read_catalogue(tmp_path / "remote")
    again = pickle.loads(pickle.dumps(catalogue))
    assert len(pickle.dumps(catalogue)) < 500
    np.testing.assert_array_equal(again.east, catalogue.east)
    assert again.path(1) == catalogue.path(1)
