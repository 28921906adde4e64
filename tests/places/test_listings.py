"""Listings of object storage in place of a search."""

import gzip
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progeo.places.catalogue import read_catalogue
from progeo.places.listings import listed_paths
from progeo.places.scanning import index_catalogue
from progeo.remote_files import RemotePath

A, B = "@1@2@.jpg", "deep/@3@4@ b+c%.PNG"
IMAGES = [A, B]


@pytest.fixture(scope="module")
def bucket():
    system = fsspec.filesystem("memory")
    for name in IMAGES:
        system.pipe_file(f"/bucket/city/{name}", b"")
    yield RemotePath("memory://bucket/city")
    system.rm("/bucket", recursive=True)


def listed(file, root):
    return [name for batch in listed_paths([file], root) for name in batch.to_pylist()]


TEXTS = {
    "names": f"{A}\r\n\r\n./{B}\nnotes.txt\n.hidden/{A}\n",
    "URLs": f"memory://bucket/city/{A}\nmemory://bucket/city/{B}\nmemory://bucket/other/{A}\ns3://bucket/city/{A}\n",
    "gsutil ls -r": f"memory://bucket/city/:\nmemory://bucket/city/{A}\n\nmemory://bucket/city/deep/:\n"
    f"memory://bucket/city/{B}\n",
    "gsutil ls -l": f"   2276224  2020-03-02T19:25:17Z  memory://bucket/city/{A}\n         7  2020-03-02T19:25:18Z  "
    f"memory://bucket/city/{B}\nTOTAL: 2 objects, 2276231 bytes (2.17 MiB)\n",
    "aws s3 ls --recursive": f"2013-09-02 21:37:53         10 city/{A}\n2013-09-02 21:37:53    2863288 city/{B}\n"
    f"2013-09-02 21:37:53          0 cityscape/{A}\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_texts_of_programs_name_the_images_of_the_folder_in_their_order(text, bucket, tmp_path):
    (tmp_path / "list.txt").write_text(text, newline="", encoding="utf-8")
    assert listed(tmp_path / "list.txt", bucket) == IMAGES


def test_a_compressed_text_is_read_too(bucket, tmp_path):
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(TEXTS["names"].encode()))
    assert listed(tmp_path / "list.txt.gz", bucket) == IMAGES


CODED = ["city/%401%402%40.jpg", "city/deep%2F%403%404%40+b%2Bc%25.PNG", "other/%401%402%40.jpg", "city/notes.txt"]
OLD = (
    '"bucket","city/%405%402%40.jpg","v1","false","false","7"\n"bucket","city/%406%402%40.jpg","v1","true","true",""\n'
)


def test_an_inventory_as_csv_has_coded_keys(bucket, tmp_path):
    lines = [f'"bucket","{key}","7","2020-01-01T00:00:00.000Z"\n' for key in CODED]
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    assert listed(tmp_path / "data.csv.gz", bucket) == IMAGES


def test_an_inventory_of_all_versions_counts_the_latest_that_were_not_deleted(bucket, tmp_path):
    lines = [f'"bucket","{key}","v2","true","false","7"\n' for key in CODED]
    (tmp_path / "data.csv").write_text(OLD + "".join(lines), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="no image"):
        (tmp_path / "old.csv").write_text(OLD, encoding="utf-8")
        listed(tmp_path / "old.csv", bucket)
    assert listed(tmp_path / "data.csv", bucket) == IMAGES


def test_an_inventory_as_parquet_has_plain_keys(bucket, tmp_path):
    table = pa.table({"bucket": ["bucket"] * 4, "key": [f"city/{A}", f"city/{B}", "city/%40.jpg", "x.jpg"]})
    pq.write_table(table, tmp_path / "data.parquet")
    assert listed(tmp_path / "data.parquet", bucket) == [*IMAGES, "%40.jpg"]
    versions = {"is_latest": [True, True, False, True], "is_delete_marker": [False, False, False, True]}
    pq.write_table(
        pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **versions}), tmp_path / "v.parquet"
    )
    assert listed(tmp_path / "v.parquet", bucket) == IMAGES


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        (
            "list.txt",
            "none@.jpg\n",
            FileNotFoundError,
            "list.txt names none@.jpg, which does not lie in memory://bucket",
        ),
        ("list.txt", "notes.txt\n", FileNotFoundError, r"list.txt names no image \(.jpg"),
        ("list.txt", "", FileNotFoundError, "names no image"),
        ("list.csv", "path,latitude\na.jpg,3\n", ValueError, "no S3 Inventory of the bucket bucket: .* holds 'path'"),
        ("list.csv", "path\na.jpg\n", ValueError, "no S3 Inventory, whose first columns are bucket and key"),
        ("list.parquet", "no parquet", ValueError, "The listing .* cannot be read"),
    ],
)
def test_a_listing_of_something_else_is_refused(name, content, kind, words, bucket, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(kind, match=words):
        listed(tmp_path / name, bucket)


def test_a_key_that_leads_elsewhere_is_skipped(bucket, tmp_path):
    keys = [f"city/{A}", f"city/http://host/{A}", f"city//etc/{A}", f"city/a::file:///etc/{A}", f"city/../{A}"]
    pq.write_table(pa.table({"bucket": ["bucket"] * 5, "key": keys}), tmp_path / "data.parquet")
    assert listed(tmp_path / "data.parquet", bucket) == [A]


def test_a_listing_makes_a_catalogue_that_a_change_of_it_does_not_touch(bucket, tmp_path):
    (tmp_path / "one.txt").write_text(f"{B}\n", encoding="utf-8")
    (tmp_path / "two.txt").write_text(f"{A}\n", encoding="utf-8")
    index_catalogue(bucket, tmp_path / "city", listings=[tmp_path / "one.txt", tmp_path / "two.txt"])
    (tmp_path / "one.txt").unlink()
    catalogue = read_catalogue(tmp_path / "city")
    assert (catalogue.table["path"].to_pylist(), catalogue.east.tolist()) == ([B, A], [3, 1])
    assert str(catalogue.path(1)) == f"memory://bucket/city/{A}"


def test_a_bucket_may_be_mounted(tmp_path):
    (tmp_path / "disk/city").mkdir(parents=True)
    (tmp_path / "disk/city" / A).touch()
    for form in (f"2013-09-02 21:37:53 10 city/{A}\n", f"{tmp_path}/disk/city/{A}\n", f"city/{A}\n"):
        (tmp_path / "list.txt").write_text(form, encoding="utf-8")
        assert listed(tmp_path / "list.txt", Path(tmp_path / "disk")) == [f"city/{A}"]


@pytest.mark.parametrize("form", ["{0}/disk/disk/{1}", "disk/disk/{1}", "./disk/{1}"])
def test_paths_may_be_absolute_or_relative_to_where_the_folder_is_named(form, tmp_path, monkeypatch):
    (tmp_path / "disk/disk").mkdir(parents=True)
    (tmp_path / "disk/disk" / A).touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(form.format(tmp_path, A), encoding="utf-8")
    assert listed(tmp_path / "list.txt", Path("disk")) == [f"disk/{A}"]
