import json
import re
import sys
import zipfile
from dataclasses import replace

import onnxruntime
import pytest
import torch
from classifiers import classifier_of
from safetensors.torch import load_file

from progeo.cli import main
from progeo.export.classifier import load_encoder_and_classifier, write_classifier
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder


@pytest.fixture
def run(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96)).eval()
    settings = {"run": str(tmp_path / "run"), "data": {"train_folder": "/home/me/images"}}
    provenance = {"imported_from": "/home/me/model.pth", "settings": settings}
    save_encoder(tmp_path / "run/best", encoder, provenance=provenance, recalls={})
    return tmp_path / "run", encoder


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_onnx_takes_pixels_and_halves_take_half_the_room(run):
    folder, encoder = run
    main(["export", str(folder), "--format", "onnx", "--input", "pixels", "--fp16", "true"])
    assert names(folder) == {"best", "export_onnx"}
    assert names(folder / "export_onnx") == {"model.onnx", "README.md"}
    file = folder / "export_onnx/model.onnx"
    assert file.stat().st_size < 0.6 * (folder / "best/model.safetensors").stat().st_size
    assert "uint8 RGB (B, H, W, 3), H and W from 64 and multiples of 16" in (file.parent / "README.md").read_text()
    pixels = torch.randint(0, 256, (3, 96, 80, 3), dtype=torch.uint8)
    (found,) = onnxruntime.InferenceSession(file).run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = encoder(encoder.normalize(pixels.permute(0, 3, 1, 2)))
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-2)


@pytest.mark.slow
def test_the_backbone_and_the_program_leave_with_a_card_each(run, tmp_path, monkeypatch):
    folder, encoder = run
    main(["export", str(folder), "--format", "torch", "--out", str(tmp_path / "program")])
    assert names(tmp_path / "program") == {"model.pt2", "README.md"}
    (usage,) = re.findall(r"```python\n(.*?)```", (tmp_path / "program/README.md").read_text(), re.DOTALL)
    assert "load only files of those whom you trust" in usage
    monkeypatch.chdir(tmp_path / "program")
    used = {"images": torch.rand(3, 3, 96, 80)}
    exec(usage, used)
    with torch.no_grad():
        torch.testing.assert_close(used["descriptors"], encoder(used["images"]), rtol=0, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "program/model.pt2") as archive:
        written = [archive.read(name) for name in archive.namelist()]
    assert not [content for content in written if str(tmp_path).encode() in content or b"site-packages" in content]
    main(["export", str(folder), "--format", "backbone", "--out", str(tmp_path / "backbone")])
    assert names(tmp_path / "backbone") == {"backbone.safetensors", "README.md"}
    state = load_file(tmp_path / "backbone/backbone.safetensors")
    assert torch.equal(state["visual.proj"], encoder.backbone.proj)


@pytest.mark.parametrize("format", ["safetensors", pytest.param("torch", marks=pytest.mark.slow), "backbone"])
def test_the_classifier_leaves_with_what_computes_descriptors(run, tmp_path, format):
    folder, encoder = run
    classifier = classifier_of([(549120, 4180920, 0), (549140, 4180920, 0)], 128)
    saved = save_encoder(folder / "best", encoder, provenance={}, recalls={}, classifier=classifier)
    main(["export", str(folder), "--format", format, "--out", str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    if format == "backbone":
        assert names(tmp_path / "out") == {"backbone.safetensors", "README.md"}
        assert "classifier" not in card
        return
    written = tmp_path / "out/classifier.safetensors"
    assert written.read_bytes() == (saved / "classifier.safetensors").read_bytes()
    assert "vectors of the cosface head, 2 classes: cells of 20 m, UTM zone 10, north" in card
    if format == "safetensors":
        assert len(load_encoder_and_classifier(tmp_path / "out")[1]) == 2
    with pytest.raises(SystemExit, match=r"already holds model.*, classifier\.safetensors, README\.md: name another"):
        main(["export", str(folder), "--format", format, "--out", str(tmp_path / "out")])


def test_the_classifier_of_another_encoder_does_not_leave(run, tmp_path):
    folder, _ = run
    write_classifier(replace(classifier_of([(0, 0, 0)], 128), encoder="0" * 64), folder / "best/classifier.safetensors")
    with pytest.raises(SystemExit, match="is that of an encoder with other weights"):
        main(["export", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_leaves_names_no_folder_of_this_machine(run, tmp_path):
    main(["export", str(run[0]), "--out", str(tmp_path / "my_encoder")])
    written = [path.read_bytes() for path in (tmp_path / "my_encoder").iterdir()]
    assert len(written) == 3
    assert not [text for text in written if b"/home" in text or str(tmp_path).encode() in text]
    provenance = json.loads((tmp_path / "my_encoder/model.json").read_text())["provenance"]
    assert provenance["imported_from"] == "model.pth"
    assert provenance["settings"] == {"run": "run", "data": {"train_folder": "images"}}


def test_the_license_of_the_images_is_told_once_and_stays(run, tmp_path):
    main(["export", str(run[0]), "--data_license", "CC BY-SA 4.0 / ours", "--out", str(tmp_path / "first")])
    main(["export", str(tmp_path / "first"), "--out", str(tmp_path / "second")])
    metadata = json.loads((tmp_path / "second/model.json").read_text())
    assert metadata["card"]["license of the training images"] == "CC BY-SA 4.0 / ours"
    assert {"license of the code", "parameters", "computation", "intended use"} <= set(metadata["card"])
    card = (tmp_path / "second/README.md").read_text()
    assert "| license of the training images | CC BY-SA 4.0 / ours |" in card
    size = (tmp_path / "second/model.safetensors").stat().st_size + (tmp_path / "second/model.json").stat().st_size
    assert f"| size of the files | {size / 1e6:.1f} MB |" in card


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fp16", "true"], "--fp16 is for the format onnx, not for safetensors: leave it out."),
        (["--format", "torch", "--fp16", "true"], "--fp16 is for the format onnx, not for torch"),
        (["--format", "backbone", "--input", "photos"], "--input is for the formats onnx and torch, not for backbone"),
    ],
)
def test_a_setting_that_a_format_does_not_know_is_refused(run, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(["export", str(run[0]), *arguments])
    assert names(run[0]) == {"best"}


def test_a_missing_package_is_named_with_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r"needs the package onnxscript: pip install 'progeo\[onnx\]'"):
        main(["export", str(run[0]), "--format", "onnx"])
    assert names(run[0]) == {"best"}


@pytest.mark.parametrize("there", [set(), {"notes.txt"}])
def test_an_export_that_fails_leaves_nothing_and_can_be_tried_again(run, there, tmp_path):
    target = tmp_path / "my_encoder"
    for name in there:
        target.mkdir()
        (target / name).touch()
    before = names(tmp_path)
    description = run[0] / "best/model.json"
    text = description.read_text()
    description.write_text(text.replace('"recalls": {}', '"recalls": {"val R@1": "high"}'))
    with pytest.raises(
        SystemExit, match=r"best/model.json is not as progeo writes it: expected float, got .* in recalls"
    ):
        main(["export", str(run[0]), "--out", str(target)])
    assert names(tmp_path) == before
    assert not there or names(target) == there
    description.write_text(text)
    main(["export", str(run[0]), "--out", str(target)])
    assert names(target) == {"model.safetensors", "model.json", "README.md", *there}
    assert names(tmp_path) == {"run", "my_encoder"}


def test_a_full_disk_is_named_by_the_file_that_was_asked_for_and_leaves_nothing(run, full_disk, tmp_path):
    with full_disk(), pytest.raises(SystemExit, match=r"out/my_encoder/model\.safetensors could not be written"):
        main(["export", str(run[0]), "--out", str(tmp_path / "out/my_encoder")])
    assert names(tmp_path) == {"run", "out"}
    assert not names(tmp_path / "out")


def test_a_file_cannot_be_the_folder_to_write_to(run, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"notes\.txt is no folder: name another"):
        main(["export", str(run[0]), "--out", str(tmp_path / "notes.txt")])


def test_an_export_with_texts_says_so_and_replaces_no_file(run, tmp_path, capsys):
    texts, target = tmp_path / "texts.safetensors", tmp_path / "my_encoder"
    texts.write_bytes(b"texts")
    run[1].spec = replace(run[1].spec, text_weights=str(texts))
    save_encoder(tmp_path / "other", run[1], provenance={}, recalls={})
    target.mkdir()
    (target / "clip.safetensors").write_bytes(b"mine")
    with pytest.raises(SystemExit, match=r"my_encoder already holds clip\.safetensors: name another folder"):
        main(["export", str(tmp_path / "other"), "--out", str(target)])
    assert names(target) == {"clip.safetensors"}
    assert (target / "clip.safetensors").read_bytes() == b"mine"
    (target / "clip.safetensors").unlink()
    main(["export", str(tmp_path / "other"), "--out", str(target)])
    assert (target / "clip.safetensors").read_bytes() == b"texts"
    assert "README.md, clip.safetensors, model.json, model.safetensors written to" in capsys.readouterr().err


def test_the_card_names_the_folder_also_where_it_is_the_current_one(run, tmp_path, monkeypatch):
    (tmp_path / "my_encoder").mkdir()
    monkeypatch.chdir(tmp_path / "my_encoder")
    main(["export", str(run[0]), "--out", "."])
    assert names(tmp_path / "my_encoder") == {"model.safetensors", "model.json", "README.md"}
    assert 'progeo.load_encoder("my_encoder")' in (tmp_path / "my_encoder/README.md").read_text()
