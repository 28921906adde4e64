"""A method from outside the package, as CONTRIBUTING.md describes it, from training to exported files."""

import json
import shutil

import numpy as np
import pytest
import torch
from running import ROOT, metrics_of
from safetensors.torch import load_file

import progeo
from progeo.cli import main
from progeo.engine.checkpoint import load_newest_checkpoint
from progeo.export.weights import save_encoder
from progeo.models.backbones import FAMILIES
from progeo.models.encoder import build_encoder

METHOD = (
    ("--model.architecture", "mine/small"),
    ("--model.weights", "random"),
    ("--encoder.aggregation", "peak"),
    ("--encoder.aggregation_options", "sharpness=2"),
    ("--pull.weight", "0.5"),
    ("--pull.power", "1"),
    ("--text.weight", "0"),
    ("--training.images_per_class", "2"),
    ("--training.checkpoint_every", "1"),
)


@pytest.fixture
def plugin(plugins_forgotten, tmp_path):
    """The example of the documentation, in a folder of its own."""
    return shutil.copy(ROOT / "docs/my_method.py", tmp_path / "my_method.py")


def words(plugin, *others):
    return [*map(str, others), "--plugin", str(plugin)]


def failure_of(arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    return str(error.value)


def test_a_loss_an_aggregation_and_a_backbone_from_a_file_train_resume_and_leave_as_files(
    config, city, plugin, tmp_path
):
    method = [word for pair in METHOD for word in pair]
    train = words(plugin, "train", "encoder", "--config", config, *method, "--out", tmp_path / "run")
    main(train)
    rows = metrics_of(tmp_path / "run/stage2")
    assert all(row["pull"] > 0 and row["cosface"] > 0 for row in rows[1:])
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["pull"] + rows[-1]["cosface"], rel=1e-5)

    spec = json.loads((tmp_path / "run/stage2/best/model.json").read_text())["encoder"]
    assert (spec["family"], spec["architecture"], spec["aggregation"]) == ("mine", "small", "peak")
    assert (spec["aggregation_options"], spec["descriptor_dim"]) == ({"sharpness": 2.0}, 32)

    _, whole = load_newest_checkpoint(tmp_path / "run/stage2/checkpoints")
    shutil.rmtree(tmp_path / "run/stage2/checkpoints/epoch_000003_step_000000")
    main([*train, "--resume"])
    _, again = load_newest_checkpoint(tmp_path / "run/stage2/checkpoints")
    for part in ("encoder", "terms"):
        for name, tensor in whole["task"][part].items():
            assert torch.equal(again["task"][part][name], tensor), name

    encoder = progeo.load_encoder(tmp_path / "run")
    images = torch.rand(3, 3, 64, 96)
    descriptors = encoder(images)
    assert descriptors.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    for format in ("safetensors", "torch"):
        main(words(plugin, "export", tmp_path / "run", "--format", format, "--out", tmp_path / format))
    assert torch.equal(progeo.load_encoder(tmp_path / "safetensors")(images), descriptors)
    program = torch.export.load(tmp_path / "torch/model.pt2").module()
    torch.testing.assert_close(program(images), descriptors, atol=1e-4, rtol=0)
    sentence = failure_of(words(plugin, "export", tmp_path / "run", "--format", "backbone", "--out", tmp_path / "b"))
    assert "backbone is not for small" in sentence
    assert not (tmp_path / "b").exists()

    folders = ("--folder", city / "test", "--out", tmp_path / "results", "--descriptor_cache", tmp_path / "cache")
    main(words(plugin, "evaluate", tmp_path / "run", *folders))
    assert (tmp_path / "results/report.html").is_file()
    kept = load_file(tmp_path / "run/stage2/best/model.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"backbone", "aggregation"}


def test_what_the_method_needs_and_does_not_get_is_refused_before_an_image_is_read(plugin, tmp_path):
    common = ["train", "encoder", "--data.train_folder", "none", "--validation.folder", "none", "--out", tmp_path / "x"]
    sentence = failure_of(words(plugin, *common, "--pull.weight", 1))
    assert "--pull.weight above 0 needs several images of a class in a batch, compared together: set --" in sentence
    sentence = failure_of(words(plugin, *common, "--model.architecture", "mine/large", "--text.weight", 0))
    assert "--model.architecture 'large' is not known to mine" in sentence
    mine = ["--model.architecture", "mine/small", "--text.weight", 0, "--encoder.aggregation_options", "softness=2"]
    sentence = failure_of(words(plugin, *common, *mine))
    assert (
        "--encoder.aggregation_options has 'softness', which is no option of peak: its options are sharpness"
        in sentence
    )


def test_an_encoder_of_a_plugin_is_refused_without_it_by_the_name_of_the_option(plugin, tmp_path):
    main(words(plugin, "export", "--help"))
    encoder = build_encoder("mine/smaller", "random").eval()
    save_encoder(tmp_path / "encoder", encoder, provenance={}, recalls={})
    del FAMILIES["mine"]
    export = ["export", str(tmp_path / "encoder"), "--out", str(tmp_path / "out")]
    assert "The family 'mine' of its backbone is not known" in (sentence := failure_of(export))
    assert "--plugin" in sentence


@pytest.mark.slow
def test_an_encoder_of_a_plugin_leaves_as_onnx(plugin, tmp_path):
    main(words(plugin, "export", "--help"))
    encoder = build_encoder("mine/small", "random", aggregation="peak").eval()
    save_encoder(tmp_path / "encoder", encoder, provenance={}, recalls={})
    main(words(plugin, "export", tmp_path / "encoder", "--format", "onnx", "--out", tmp_path / "onnx"))
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "onnx/model.onnx")
    images = torch.rand(3, 3, 64, 96)
    (found,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, encoder(images).detach().numpy(), atol=1e-4)
