import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import open_clip
import pytest
import torch
from running import without_digests
from safetensors.torch import load_file, save_file
from torchvision.models import VGG16_Weights

import progeo
from progeo.cli import main
from progeo.engine.options import Keep
from progeo.engine.run_folder import RunFolder
from progeo.export.encoder_folders import encoder_folder, holds_encoder
from progeo.export.weights import save_encoder
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder
from progeo.models.pixel_statistics import NORMALIZATIONS

FORMAT_2 = Path(__file__).parent / "format_2"
EXPORTED = {"README.md", "model.json", "model.safetensors"}


@pytest.fixture
def saved(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96)).eval()
    save_encoder(tmp_path / "model", encoder, provenance={"epoch": 3}, recalls={"val R@1": 50.0})
    return tmp_path / "model", encoder


def test_a_saved_encoder_comes_back_bit_for_bit_with_its_attributes(saved):
    folder, encoder = saved
    again = progeo.load_encoder(folder)
    images = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images), encoder(images))
    assert (again.descriptor_dim, again.image_size) == (128, (64, 96))
    assert torch.equal(again.mean, encoder.mean)
    assert torch.equal(again.std, encoder.std)
    assert not again.training


def test_everybody_who_may_read_the_folder_may_read_its_files(saved, tmp_path):
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in saved[0].iterdir()} == {(tmp_path / "any").stat().st_mode}


def test_the_folder_holds_two_files_and_the_description_is_whole(saved):
    folder, _ = saved
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}
    description = json.loads((folder / "model.json").read_text())
    assert description["recalls"] == {"val R@1": 50.0}
    assert description["provenance"] == {"epoch": 3}
    assert description["format"] == 3
    assert description["encoder"] == {
        "family": "open_clip",
        "architecture": "tiny-vit",
        "image_size": [64, 96],
        "descriptor_dim": 128,
        "normalized": True,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "edges",
        "resize": "bilinear",
        "aggregation": "token",
        "aggregation_options": {},
        "pooled_dim": None,
        "text_weights": None,
        "configuration": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 128, "layers": 4, "width": 128, "head_width": 32},
            "text_cfg": {"width": 64, "heads": 2, "layers": 2},
        },
    }


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_file_of_the_texts_goes_wherever_the_encoder_goes(ending, tmp_path):
    texts = tmp_path / f"weights{ending}"
    state = load_clip("tiny-vit", "random", seed=3).state_dict()
    torch.save(state, texts) if ending == ".pt" else save_file(state, texts)
    encoder = progeo.load_encoder(f"open_clip:tiny-vit:{texts}")
    save_encoder(tmp_path / "a", encoder, provenance={}, recalls={})
    texts.unlink()
    save_encoder(tmp_path / "a", progeo.load_encoder(tmp_path / "a"), provenance={}, recalls={})
    assert json.loads((tmp_path / "a/model.json").read_text())["encoder"]["text_weights"] == f"clip{ending}"
    main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    (tmp_path / "b").rename(tmp_path / "c")
    shutil.rmtree(tmp_path / "a")
    again = load_clip("tiny-vit", progeo.load_encoder(tmp_path / "c").spec.text_weights).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    (tmp_path / f"c/clip{ending}").unlink()
    assert progeo.load_encoder(tmp_path / "c").spec.text_weights is None


def test_other_texts_take_the_place_of_those_before(tmp_path):
    for seed in (3, 4):
        state = load_clip("tiny-vit", "random", seed=seed).state_dict()
        save_file(state, tmp_path / "weights.safetensors")
        encoder = progeo.load_encoder(f"open_clip:tiny-vit:{tmp_path / 'weights.safetensors'}")
        save_encoder(tmp_path / "a", encoder, provenance={}, recalls={})
    assert torch.equal(load_file(tmp_path / "a/clip.safetensors")["text_projection"], state["text_projection"])


@pytest.mark.parametrize("stage", ["", "stage2"])
@pytest.mark.parametrize("keep", get_args(Keep))
def test_a_run_gives_the_encoder_that_it_keeps(saved, tmp_path, keep, stage):
    folder, _ = saved
    run = tmp_path / "run"
    (run / stage).mkdir(parents=True)
    folder.rename(RunFolder(run / stage).kept(keep))
    assert holds_encoder(run)
    assert encoder_folder(run) == run / stage / keep
    assert progeo.load_encoder(str(run)).descriptor_dim == 128


def test_a_folder_with_the_encoders_of_two_trainings_gives_neither(saved, tmp_path):
    folder, _ = saved
    for keep in get_args(Keep):
        shutil.copytree(folder, tmp_path / "run" / keep)
    with pytest.raises(ValueError, match=r"run holds the encoders of two trainings: name .*run/best or .*run/last\.$"):
        encoder_folder(tmp_path / "run")


def test_a_run_without_an_encoder_yet_is_no_other_folder_without_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither it nor its best/ or last/ holds model\.json and"):
        encoder_folder(tmp_path)
    (tmp_path / "stage2").mkdir()
    RunFolder(tmp_path / "stage2").config.touch()
    for run in (tmp_path, tmp_path / "stage2"):
        with pytest.raises(FileNotFoundError, match=r"in the run .* yet: stage 2 writes its .* after the first epoch"):
            encoder_folder(run)


@pytest.mark.parametrize(
    ("name", "dim", "size", "aggregation"),
    [
        ("open_clip:tiny-resnet:random", 128, (128, 128), "token"),
        ("open_clip:tiny-vit:random", 128, (128, 128), "token"),
        ("torchvision:resnet18:random", 512, (224, 224), "mean"),
    ],
)
def test_encoders_to_compare_with_are_known_by_name(name, dim, size, aggregation):
    encoder = progeo.load_encoder(name)
    assert encoder.spec.aggregation == aggregation
    assert (encoder.descriptor_dim, encoder.image_size) == (dim, size)
    assert not encoder.training


def test_a_backbone_without_the_name_of_its_weights_is_refused():
    with pytest.raises(ValueError, match="open_clip:tiny-vit has no weights: add them"):
        progeo.load_encoder("open_clip:tiny-vit")


def test_an_encoder_to_compare_with_normalizes_pixels_as_its_weights_want(tmp_path, monkeypatch):
    torch.save(load_clip("tiny-vit", "random").state_dict(), tmp_path / "clip.pt")
    pixels = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
    tags = {"other": {"file": str(tmp_path / "clip.pt"), **pixels}, "plain": {"file": str(tmp_path / "clip.pt")}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", tags)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    file = Path(VGG16_Weights.IMAGENET1K_FEATURES.url).name
    layers = build_encoder("vgg16", "random", 64).backbone.state_dict()
    torch.save(layers, tmp_path / "hub/checkpoints" / file)
    expected = {
        "open_clip:tiny-vit:other": tuple(pixels.values()),
        "open_clip:tiny-vit:plain": NORMALIZATIONS["clip"],
        "open_clip:tiny-vit:random": NORMALIZATIONS["clip"],
        "torchvision:vgg16:IMAGENET1K_FEATURES": ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
        "torchvision:resnet18:random": NORMALIZATIONS["imagenet"],
    }
    for name, (mean, std) in expected.items():
        encoder = progeo.load_encoder(name)
        assert (encoder.spec.mean, encoder.spec.std) == (pytest.approx(mean), pytest.approx(std)), name
        torch.testing.assert_close(encoder.mean, torch.tensor(mean))
    assert load_clip("tiny-vit", "other").visual.proj.equal(
        progeo.load_encoder("open_clip:tiny-vit:other").backbone.proj
    )


def test_an_encoder_to_compare_with_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'nothing' is neither a file"):
        progeo.load_encoder("torchvision:resnet18:nothing")
    with pytest.raises(ValueError, match="'resnext' is not known"):
        progeo.load_encoder("open_clip:resnext:openai")


def test_the_thumbnail_baseline_is_known_by_name():
    assert progeo.load_encoder("thumbnail").descriptor_dim == 768


def test_a_file_of_onnx_and_an_address_are_no_folders_and_the_sentence_tells_what_to_do(tmp_path):
    (tmp_path / "model.onnx").touch()
    for name in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(FileNotFoundError, match=f"name it onnx:{tmp_path}/model.onnx") as error:
            progeo.load_encoder(name)
        assert "--plugin" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="hf-hub:owner/name is an address, but a folder is needed here"):
        encoder_folder(Path("hf-hub:owner/name"))


def test_what_is_no_encoder_is_refused_in_one_sentence(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="There is no encoder in"):
        progeo.load_encoder(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was written with .*/model\.json"):
        progeo.load_encoder(folder)
    without_digests(folder)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        progeo.load_encoder(folder)
    (folder / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^\S+model\.json is not the metadata of an encoder in format 3"):
        progeo.load_encoder(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        progeo.load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family", 1),
        ("architecture", ["tiny-vit"]),
        ("image_size", 64),
        ("image_size", [64, 96.0]),
        ("descriptor_dim", "128"),
        ("descriptor_dim", 0),
        ("normalized", None),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("inf")]),
        ("std", [1, 1, "1"]),
        ("std", [1, 1, 0]),
        ("std", [1, 1, -0.5]),
        ("interpolation", "align"),
        ("aggregation", None),
        ("aggregation_options", [1]),
        ("pooled_dim", True),
        ("text_weights", 3),
    ],
)
def test_a_description_that_no_encoder_can_have_is_refused_by_name_and_value(saved, name, value):
    folder, _ = saved
    description = json.loads((folder / "model.json").read_text())
    description["encoder"][name] = value
    (folder / "model.json").write_text(json.dumps(description))
    sentence = rf"model.json is not the metadata of an encoder: expected .*, got .* in {name}(\[\d\])?\.$"
    with pytest.raises(ValueError, match=sentence):
        progeo.load_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "hf-hub:owner/name", "configuration": None},
            "family open_clip has no architecture 'hf-hub:owner/name'",
        ),
        ({"family": "toy"}, "The family 'toy' of its backbone is not known: .* with `plugin`"),
        ({"image_size": [8193, 8192]}, "image_size .8193, 8192. is of more than 67,108,864 pixels"),
        ({"aggregation": "max"}, "`aggregation` 'max' is not known: use .*gem, .* with `plugin`"),
        ({"aggregation_options": {"k": 1}}, "`aggregation_options` has 'k', which is no option of token: it has none"),
    ],
)
def test_what_no_table_has_is_refused_by_name(saved, changes, sentence):
    folder, _ = saved
    description = json.loads((folder / "model.json").read_text())
    description["encoder"] |= changes
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"model.json is not the metadata of an encoder: .*{sentence}"):
        progeo.load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("gem", {"aggregation": "gem", "interpolation": "edges", "pooled_dim": 6, "architecture": "micro-resnet"}),
        ("clip", {"aggregation": "token", "interpolation": "corners", "normalized": False, "image_size": (64, 96)}),
    ],
)
def test_encoders_of_format_2_give_the_descriptors_they_gave(name, spec, tmp_path, monkeypatch):
    """Files and descriptors of the version before format 3."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    for file in FORMAT_2.glob("micro-*.json"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, file.stem, json.loads(file.read_text()))
    encoder = progeo.load_encoder(FORMAT_2 / name)
    assert {field: getattr(encoder.spec, field) for field in spec} == spec
    assert encoder.spec.family == "open_clip"
    images = torch.arange(2 * 3 * 80 * 64).view(2, 3, 80, 64).remainder(251) / 251
    save_encoder(tmp_path, encoder, provenance={}, recalls={})
    for each in (encoder, progeo.load_encoder(tmp_path)):
        with torch.no_grad():
            torch.testing.assert_close(each(images), load_file(FORMAT_2 / "descriptors.safetensors")[name])
    assert {tensor.partition(".")[0] for tensor in load_file(tmp_path / "model.safetensors")} <= {
        *("backbone", "aggregation", "projection")
    }


def test_the_family_of_an_encoder_of_format_2_is_found_by_its_architecture(tmp_path):
    save_encoder(tmp_path, build_encoder("resnet18", "random", 64), provenance={}, recalls={})
    description = json.loads((tmp_path / "model.json").read_text())
    fields = description["encoder"]
    for name in ("family", "interpolation", "aggregation_options"):
        del fields[name]
    fields["pooling"], fields["normalised"] = fields.pop("aggregation"), fields.pop("normalized")
    (tmp_path / "model.json").write_text(json.dumps({**description, "format": 2}))
    spec = progeo.load_encoder(tmp_path).spec
    assert (spec.family, spec.aggregation, spec.normalized, spec.interpolation) == ("torchvision", "gem", True, "edges")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "nothing"}, "The family open_clip has no architecture 'nothing'"),
        ({"align_corners": "false"}, "expected one of .*, got 'false' in interpolation"),
    ],
)
def test_what_an_encoder_of_format_2_cannot_be_is_refused_by_name(changes, sentence, tmp_path):
    shutil.copytree(FORMAT_2 / "gem", tmp_path / "gem")
    description = json.loads((tmp_path / "gem/model.json").read_text())
    description["encoder"] |= changes
    (tmp_path / "gem/model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"model.json is not the metadata of an encoder: {sentence}"):
        progeo.load_encoder(tmp_path / "gem")


def test_names_in_a_received_folder_do_not_reach_the_screen_as_they_are(saved):
    folder, _ = saved
    state = load_file(folder / "model.safetensors")
    save_file({**state, "a\x1b[31m": torch.zeros(1)}, folder / "model.safetensors")
    without_digests(folder)
    with pytest.raises(ValueError, match=r"fit tiny-vit: a\?\[31m should be absent"):
        progeo.load_encoder(folder)
    description = json.loads((folder / "model.json").read_text())
    description["encoder"]["a\x1b[31m"] = 1
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"model\.json is not the metadata of an encoder: unknown 'a\\x1b\[31m'; its"):
        progeo.load_encoder(folder)
    (folder / "model.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"model\.json is not a JSON file: .*recursion"):
        progeo.load_encoder(folder)


def test_a_description_cannot_name_files_outside_its_folder(saved, tmp_path, monkeypatch):
    folder, _ = saved
    description = json.loads((folder / "model.json").read_text())
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "clip.pt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate((str(tmp_path / "secret"), "../secret", "../clip.pt", "secret")):
        description["encoder"]["text_weights"] = name
        (folder / "model.json").write_text(json.dumps(description))
        main(["export", str(folder), "--out", str(tmp_path / f"{index}")])
        assert {path.name for path in (tmp_path / f"{index}").iterdir()} == EXPORTED


def test_a_tag_is_not_hidden_by_a_file_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "openai").write_text("a file")
    monkeypatch.chdir(tmp_path)
    encoder = build_encoder("tiny-vit", "random", 64).eval()
    encoder.spec = dataclasses.replace(encoder.spec, text_weights="openai")
    save_encoder(tmp_path / "a", encoder, provenance={}, recalls={})
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model.safetensors", "model.json"}
    assert progeo.load_encoder(tmp_path / "a").spec.text_weights == "openai"


def test_the_package_alone_imports_no_torch():
    light = subprocess.run(
        [sys.executable, "-c", "import sys, progeo; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" not in light
