"""Files of strangers are never executed, whatever they are called and wherever they are named."""

import pickle
import zipfile
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.http import HTTPFileSystem

import progeo
from progeo.cli import main
from progeo.data.datasets import CatalogueImages
from progeo.data.inspection import inspect_images
from progeo.features.store import load_array
from progeo.localization.place_index import open_place_index
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.remote_files import RemotePath


class Evil:
    """What, unpickled, leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def program(file, evil):
    """A file as `torch.export.save` writes it, whose every pickle is evil."""
    content = pickle.dumps(evil)
    names = ("data.pkl", "data/weights/weight_0", "data/constants/tensor_0", "data/sample_inputs/model.pt")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
        archive.writestr("model/models/model.json", "{}")
        for name in names:
            archive.writestr(f"model/{name}", content)


def plain_pickle(file, evil):
    file.write_bytes(pickle.dumps(evil))


def numpy_pickle(file, evil):
    with file.open("wb") as stream:
        np.save(stream, np.array([evil], object), allow_pickle=True)


@pytest.fixture(autouse=True)
def loaders_watched(monkeypatch):
    """Fail where a loader that can run code is called."""
    load = torch.load

    def watched(*arguments, **options):
        assert options.get("weights_only") is True
        return load(*arguments, **options)

    def never(*_, **__):
        pytest.fail("a loader that runs code was called")

    monkeypatch.setattr(torch, "load", watched)
    monkeypatch.setattr(torch.export, "load", never)
    monkeypatch.setattr(torch.jit, "load", never)


WAYS = {
    "load_encoder of a folder": lambda folder, file: progeo.load_encoder(folder),
    "load_encoder of a file": lambda folder, file: progeo.load_encoder(file),
    "import": lambda folder, file: main(["import", str(file), "--out", str(folder / "out")]),
    "weights of open_clip": lambda folder, file: progeo.load_encoder(f"open_clip:tiny-vit:{file}"),
    "weights of torchvision": lambda folder, file: progeo.load_encoder(f"torchvision:resnet18:{file}"),
    "open_place_index": lambda folder, file: open_place_index(folder),
    "descriptors": lambda folder, file: load_array(folder / "database_descriptors.npy"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "write"),
    [(name, program) for name in ("model.pt2", "model.safetensors", "model.pth", "model.bin", "index.json")]
    + [("model.pt2", plain_pickle), ("model.safetensors", plain_pickle), ("model.pt2", numpy_pickle)],
)
def test_nothing_in_a_file_is_executed(tmp_path, way, write, name):
    folder, mark = tmp_path / "given", tmp_path / "executed"
    folder.mkdir()
    write(folder / name, Evil(mark))
    numpy_pickle(folder / "database_descriptors.npy", Evil(mark))
    for other in {"model.json", "model.safetensors"} - {name}:
        write(folder / other, Evil(mark))
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as caught:
        WAYS[way](folder, folder / name)
    assert caught.value.args[0] != 0
    assert not mark.exists()


def catalogue_of(folder, name):
    columns = {"path": pa.array([name], pa.large_string()), "east": [1.0], "north": [2.0]}
    table = pa.table(columns | {"zone": pa.array([33], pa.int8()), "heading": [0.0]})
    Catalogue(folder, table).save(folder / "city.arrow", {"root": str(folder)})
    return read_catalogue(folder / "city")


@pytest.mark.parametrize("chain", ["reference://a.jpg::file://{0}", "simplecache::reference://a.jpg::file://{0}"])
def test_a_url_that_would_execute_the_templates_of_a_file_is_refused(tmp_path, chain):
    (tmp_path / "references.json").write_text('{"version": 1, "refs": {"a.jpg": "content"}}')  # with `gen`, templates
    images = CatalogueImages(catalogue_of(tmp_path, chain.format(tmp_path / "references.json")))
    assert "reference is none of the protocols" in images[0].reason
    (inspected,) = inspect_images(images.catalogue, np.array([0]))
    assert "reference is none of the protocols" in inspected.reason


def test_a_web_server_names_no_files_of_this_machine(tmp_path, monkeypatch):
    names = [f"{quote(str(tmp_path), safe='')}%2Fsecret.jpg", "http:%2F%2F10.0.0.1%2Fa.jpg", "..%2F..%2Fa.jpg", "b.jpg"]
    listing = [{"name": f"https://host/city/{name}", "type": "file"} for name in names]
    monkeypatch.setattr(HTTPFileSystem, "ls", lambda self, path, detail: listing)
    assert RemotePath("https://host/city").entries() == [("b.jpg", False)]
