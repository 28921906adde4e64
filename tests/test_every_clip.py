"""Every kind of CLIP through all commands: both stages, evaluate, a place index asked in words, and exports."""

import json
import re

import pytest
import tiny_clips
import torch
from safetensors.torch import save_file
from small_towers import configuration, register_small_towers

import progeo
from progeo.cli import main
from progeo.localization.text_search import text_descriptor
from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.backbones.clips import load_clip, random_clip

SIGLIP = {
    **{"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
    **{"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": 300},
}
CLIPA = {
    **{"no_causal_mask": True, "pool_type": "last", "hf_tokenizer_name": "bert-base-uncased", "vocab_size": 300},
    "tokenizer_kwargs": {"strip_sep_token": True},
}
WORLDWIDE = {"hf_tokenizer_name": "facebook/xlm-v-base", "vocab_size": 300, "pool_type": "eos", "eos_id": 2}
ROBERTA = {"hf_model_name": "tiny/roberta", "hf_tokenizer_name": "roberta-base", "hf_proj_type": "linear"}
KINDS = {
    "vit": ({}, None),
    "resnet": ({}, None),
    "coca": ({}, None),
    "siglip": (SIGLIP, tiny_clips.siglip),
    "clipa": (CLIPA, tiny_clips.bert),
    "eva02": ({"custom_text": True}, None),
    "pe": ({"custom_text": True}, None),
    "mci": ({"custom_text": True}, None),
    "fastvit": ({"custom_text": True, "no_causal_mask": True}, None),
    "vitamin": ({"custom_text": True}, None),
    "convnext": ({}, None),
    "swin": ({}, None),
    "worldwide": (WORLDWIDE, tiny_clips.xlm),
    "roberta": (ROBERTA, tiny_clips.roberta),
}
"""Settings of the text tower of a CLIP with a small visual tower, and the tokenizer that stands in for its own."""
MEAN = [0.4, 0.5, 0.6]


def write_clip(folder, kind):
    """Write a CLIP of random weights as open_clip does: configuration, weights and tokenizer."""
    register_small_towers()
    text, tokenizer = KINDS[kind]
    values = configuration(f"small-{kind if kind in ('coca', *VISUAL) else 'vit'}")
    values = values | ({"custom_text": True} if text.get("custom_text") else {})
    values["text_cfg"] = values["text_cfg"] | {name: value for name, value in text.items() if name != "custom_text"}
    clip = random_clip(ClipConfiguration(values), 0)
    folder.mkdir()
    if tokenizer is not None:
        tokenizer().save_pretrained(folder)
        (folder / "config.json").write_text("{}")
    pixels = {"mean": MEAN, "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values, "preprocess_cfg": pixels}))
    state = {name: tensor.nan_to_num() for name, tensor in clip.state_dict().items()}  # CoCa's decoder has any numbers
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


VISUAL = set(KINDS) - {"worldwide", "roberta"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_goes_through_all_commands(kind, hub_cache, config, city, tmp_path, capsys):
    clip, out = write_clip(tmp_path / "clip", kind), tmp_path / "run"
    own = ["--config", str(config), "--model.architecture", clip, "--model.weights", clip, "--out", str(out)]
    prompts = ["--prompts.template", "a photo of {} street", "--prompts.feature_cache", str(tmp_path / "features")]
    main(["train", "prompts", *own, *prompts, "--prompts.epochs", "1"])
    main(["prompts", "show", str(out), "--num_words", "2"])
    aggregation = ["--encoder.aggregation", "token", "--encoder.descriptor_dim", "null"]
    main(["train", "encoder", *own, *aggregation, "--training.epochs", "1"])
    main(["evaluate", str(out), "--folder", str(city / "test"), "--out", str(tmp_path / "test")])
    main(["index", "build", str(out), "--folder", str(city / "test/database"), "--out", str(tmp_path / "index")])
    capsys.readouterr()
    main(["localize", "--text", "a narrow street", "--index", str(tmp_path / "index"), "--top", "3"])
    assert "a narrow street" in capsys.readouterr().out
    encoder = progeo.load_encoder(out)
    assert encoder.spec.mean == tuple(MEAN)
    images = torch.randn(2, 3, 64, 64)
    main(["export", str(out), "--out", str(tmp_path / "safetensors")])
    exported = progeo.load_encoder(tmp_path / "safetensors")
    assert exported(images).equal(encoder(images))
    assert exported.spec.architecture == "local-dir:clip"
    assert all(
        str(tmp_path) not in (tmp_path / "safetensors" / name).read_text() for name in ("model.json", "README.md")
    )
    assert text_descriptor(exported.spec, "a street").tolist() == text_descriptor(encoder.spec, "a street").tolist()
    graph = ["--input", "photos"] if kind == "swin" else []  # it takes one size only
    for name in ("onnx", "torch"):  # compared with the encoder
        main(["export", str(out), "--format", name, *graph, "--out", str(tmp_path / name)])
    assert (tmp_path / "onnx/model.onnx").is_file()
    assert (tmp_path / "torch/model.pt2").is_file()


@pytest.mark.parametrize(
    "kind", ["siglip", pytest.param("coca", marks=pytest.mark.slow), pytest.param("eva02", marks=pytest.mark.slow)]
)
def test_a_clip_that_is_imported_is_the_one_of_its_address(kind, tmp_path, capsys):
    address = write_clip(tmp_path / "clip", kind)
    main(["import", str(tmp_path / "clip"), "--out", str(tmp_path / "encoder")])
    log = capsys.readouterr().err
    imported, named = progeo.load_encoder(tmp_path / "encoder"), progeo.load_encoder(f"open_clip:{address}")
    images = torch.randn(2, 3, 64, 64)
    assert imported(images).equal(named(images))
    assert (imported.mean.flatten().tolist(), imported.resize) == (named.mean.flatten().tolist(), "bicubic")
    architecture, weights = re.search(r"--model.architecture (\S+) --model.weights (\S+) trains it", log).groups()
    texts = load_clip(architecture, weights).state_dict()
    assert all(texts[name].equal(tensor) for name, tensor in load_clip(address, address).state_dict().items())
