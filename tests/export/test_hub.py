import functools
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from classifiers import classifier_of

import progeo
from progeo.export import fetch
from progeo.export.classifier import load_encoder_and_classifier
from progeo.export.downloads import Limits
from progeo.export.hub import from_pretrained
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96)).eval()
    return save_encoder(tmp_path / "my_encoder", encoder, provenance={}, recalls={}), encoder


@pytest.fixture(autouse=True)
def insecure_downloads(monkeypatch):
    """Allow downloads from the servers of the tests, on this machine."""
    monkeypatch.setenv("PROGEO_INSECURE_DOWNLOADS", "1")


@contextmanager
def serving(handler):
    """The URL of a server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def address(tmp_path):
    """The URL at which the files of `tmp_path` are served."""
    with serving(functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)) as url:
        yield url


def same(one, other):
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        return torch.equal(one(images), other(images))


def test_an_encoder_comes_from_the_url_of_its_folder_and_is_kept(saved, address, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder, encoder = saved
    assert same(progeo.load_encoder(f"{address}/my_encoder/"), encoder)
    kept = list((tmp_path / "home/hub/progeo").glob("*/*"))
    assert {path.name for path in kept} == {"model.safetensors", "model.json"}
    (folder / "model.json").unlink()
    assert same(progeo.load_encoder(f"{address}/my_encoder/"), encoder)
    with pytest.raises(FileNotFoundError, match=r"other/model.safetensors could not be fetched: .*404"):
        progeo.load_encoder(f"{address}/other")


def test_a_classifier_comes_from_the_url_of_its_encoder_when_it_is_asked_for(saved, address, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder, encoder = saved
    name = f"{address}/my_encoder"
    with pytest.raises(FileNotFoundError, match=r"my_encoder/classifier.safetensors could not be fetched: .*404"):
        load_encoder_and_classifier(name)
    classifier = classifier_of([(549120, 4180920, 0), (549140, 4180920, 0)], encoder.descriptor_dim)
    save_encoder(folder, encoder, provenance={}, recalls={}, classifier=classifier)
    loaded, fetched = load_encoder_and_classifier(name)
    assert same(loaded, encoder)
    assert fetched.weight.tolist() == classifier.weight.tolist()
    kept = list((tmp_path / "home/hub/progeo").glob("*/*"))
    assert {path.name for path in kept} == {"model.safetensors", "model.json", "classifier.safetensors"}


def test_a_url_with_and_without_a_slash_is_fetched_once(saved, address, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    progeo.load_encoder(f"{address}/my_encoder/")
    progeo.load_encoder(f"{address}/my_encoder")
    assert len(list((tmp_path / "home/hub/progeo").iterdir())) == 1


class BreaksOff(BaseHTTPRequestHandler):
    """Announces more than it sends."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 300)


def test_a_download_that_breaks_off_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    sentence = r"my_encoder/model.safetensors could not be fetched: it broke off after 300 of 1,000 bytes\."
    with serving(BreaksOff) as address, pytest.raises(FileNotFoundError, match=sentence):
        progeo.load_encoder(f"{address}/my_encoder")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_page_instead_of_a_file_is_not_kept(saved, address, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder, encoder = saved
    for name in ("model.safetensors", "model.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_text("<!DOCTYPE html> come back later")
        with pytest.raises(
            FileNotFoundError, match=rf"{name} could not be fetched: the downloaded {name} is corrupt or incomplete\."
        ):
            progeo.load_encoder(f"{address}/my_encoder")
        (folder / name).write_bytes(whole)
    assert same(progeo.load_encoder(f"{address}/my_encoder"), encoder)


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fetch, "Limits", functools.partial(Limits, stalled_s=0.1))
    sentence = r"model.safetensors could not be fetched: timed out\."
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FileNotFoundError, match=sentence):
        progeo.load_encoder(f"http://127.0.0.1:{silent.getsockname()[1]}/my_encoder")


def test_an_encoder_comes_from_the_hugging_face_hub(saved, tmp_path, monkeypatch):
    folder, encoder = saved
    classifier = classifier_of([(549120, 4180920, 0)], encoder.descriptor_dim)
    save_encoder(folder, encoder, provenance={}, recalls={}, classifier=classifier)
    snapshot = tmp_path / "hub/models--owner--name/snapshots" / (40 * "a")
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(40 * "a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(progeo.load_encoder("hf-hub:owner/name"), encoder)
    assert len(load_encoder_and_classifier("hf-hub:owner/name")[1]) == 1
    with pytest.raises(FileNotFoundError, match=r"^owner/other could not be fetched from the Hugging Face Hub"):
        progeo.load_encoder("hf-hub:owner/other")


def test_an_exported_folder_is_loaded_under_the_name_of_the_hugging_face_libraries_too(saved):
    folder, encoder = saved
    assert same(from_pretrained(str(folder)), encoder)


@pytest.mark.slow
def test_torch_hub_loads_from_a_folder_of_this_repository_and_imports_neither_training_nor_search(tmp_path):
    encoder = build_encoder("shufflenet_v2_x0_5", "random", (64, 96)).eval()
    folder = save_encoder(tmp_path / "my_encoder", encoder, provenance={}, recalls={})
    code = f"""
import sys, torch
from PIL import Image
encoder = torch.hub.load({str(ROOT)!r}, "progeo", source="local", weights={str(folder)!r})
torch.save(encoder(torch.ones(1, 3, 64, 96)), {str(tmp_path / "descriptor.pt")!r})
encoder(encoder.preprocess(Image.new("RGB", (90, 70)))[None])
print(*sys.modules)
untrained = torch.hub.load({str(ROOT)!r}, "progeo_untrained", source="local", backbone="resnet18", descriptor_dim=64)
import progeo.localization.place_index, progeo.localization.programs
print(*sys.modules)
print(untrained.descriptor_dim, untrained.training, sys.modules["progeo"].__file__)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    modules, localizing, untrained = (line.split() for line in said.splitlines())
    rooms = {f"progeo.{room}" for room in ("config", "data", "engine", "evaluation", "losses", "places", "stages")}
    packages = {"faiss", "accelerate", "jsonargparse", "pyarrow", "scipy", "h5py", "utm", "onnx", "onnxruntime"}
    assert {"progeo.models.encoder", "progeo.export.weights"} <= set(modules)
    assert not (rooms | packages) & set(modules)
    other_families = {"open_clip", "timm", "transformers"}
    assert not (other_families | {"scipy.optimize", "scipy.spatial", "scipy.stats"}) & set(localizing)
    assert untrained == ["64", "False", str(ROOT / "progeo/__init__.py")]
    with torch.no_grad():
        expected = encoder(torch.ones(1, 3, 64, 96))
    torch.testing.assert_close(torch.load(tmp_path / "descriptor.pt", weights_only=True), expected)
