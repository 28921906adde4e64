"""CLIPs of OpenAI, open_clip and Hugging Face: images as the weights mean them, texts beside them."""

import json
import re
import zipfile

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from plain_clip import attention_pooled, resnet_map, resnet_state, text_state, vit_features, vit_state
from safetensors.torch import save_file
from small_towers import SMALL_TOWERS, register_small_towers
from tiny_clips import shrunk
from torch import nn

import progeo
from progeo.cli import main
from progeo.convert.converted_encoder import Choices
from progeo.convert.recognition import open_source, read_encoder
from progeo.localization.text_search import text_descriptor
from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.backbones.clips import load_clip
from progeo.models.clip_files import OPEN_CLIP_WEIGHTS
from progeo.models.encoder import build_encoder
from progeo.models.text_towers.tower import build_text_tower

OPENAI_NUMBERS = {"input_resolution": torch.tensor(128), "context_length": torch.tensor(77)}
OPENAI_NUMBERS["vocab_size"] = torch.tensor(49408)
FULL_TEXT = {"width": 512, "layers": 12, "dim": 512}
FULL_VIT = {"width": 768, "layers": 12, "patch_px": 32, "grid": (7, 7), "dim": 512}


def vit_clip(**sizes):
    return {**vit_state("visual.", **sizes), **text_state(), "logit_scale": torch.tensor(4.6)}


def resnet_clip():
    return {**resnet_state("visual."), **text_state(), "logit_scale": torch.tensor(4.6)}


def imported(path, tmp_path, *options):
    main(["import", str(path), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


def of_length_one(features):
    return features / features.norm(dim=1, keepdim=True)


def assert_images_alike(encoder, expected, images):
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-4)


def assert_texts_alike(encoder, state, activation):
    """The CLIP that the encoder names encodes a sentence as its weights mean it, end of text and all."""
    spec = encoder.spec
    clip = load_clip(spec.architecture, spec.text_weights)
    tokenizer = SimpleTokenizer()
    ids = [tokenizer.sot_token_id, *tokenizer.encode("a red house"), tokenizer.eot_token_id]
    tokens = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.")})
    heads = clip.transformer.resblocks[0].attn.num_heads
    future = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."

        def norm(name, values, block=block):
            return F.layer_norm(values, values.shape[-1:], state[f"{block}{name}.weight"], state[f"{block}{name}.bias"])

        def linear(name, values, block=block):
            return values @ state[f"{block}{name}.weight"].T + state[f"{block}{name}.bias"]

        mixed = norm("ln_1", tokens) @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        query, key, value = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in mixed.chunk(3, dim=1))
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 + future
        tokens = tokens + linear("attn.out_proj", (scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
        tokens = tokens + linear("mlp.c_proj", activation(linear("mlp.c_fc", norm("ln_2", tokens))))
    last = F.layer_norm(tokens[-1], tokens[-1].shape, state["ln_final.weight"], state["ln_final.bias"])
    with torch.no_grad():
        found = clip.encode_text(open_clip.tokenize(["a red house"]))[0]
    torch.testing.assert_close(found, last @ state["text_projection"], rtol=1e-3, atol=1e-4)


def quick_gelu(values):
    return values * torch.sigmoid(1.702 * values)


class Tree(nn.Module):
    """Modules in modules that own a state dict, such as those whose code an archive of OpenAI holds."""

    def __init__(self, state):
        super().__init__()
        inside = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            if rest:
                inside.setdefault(first, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(first, nn.Parameter(tensor))
            else:
                self.register_buffer(first, tensor)
        for name, part in inside.items():
            self.add_module(name, Tree(part))

    def forward(self, images):
        return images


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_an_archive_of_openai_gives_its_image_features_with_quickgelu(kind, tmp_path, capsys):
    state = vit_clip() if kind == "vit" else resnet_clip()
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model = Tree({**state, **OPENAI_NUMBERS})
    torch.jit.save(torch.jit.trace(model, torch.rand(1)), tmp_path / "clip.pt")
    encoder = imported(tmp_path / "clip.pt", tmp_path)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    images = torch.randn(2, 3, 128, 128)
    if kind == "vit":
        expected = vit_features(state, "visual.", images)
    else:
        expected = attention_pooled(state, "visual.", resnet_map(state, "visual.", images), heads=16)
    assert_images_alike(encoder, of_length_one(expected), images)
    assert encoder.spec.architecture == f"tiny-{kind}-quickgelu"
    assert encoder.spec.image_size == (128, 128)
    assert (encoder.spec.mean, encoder.spec.resize) == ((0.48145466, 0.4578275, 0.40821073), "bicubic")
    assert encoder.spec.text_weights == str((tmp_path / "encoder/clip.safetensors").resolve())
    assert_texts_alike(encoder, state, quick_gelu)
    assert f"--model.architecture tiny-{kind}-quickgelu --model.weights" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"as tiny-{kind}: by its metadata it is a tiny-{kind}-quickgelu: give"):
        load_clip(f"tiny-{kind}", encoder.spec.text_weights)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_file_of_open_clip_gives_its_image_features_with_gelu_unless_told(ending, tmp_path, capsys):
    state = vit_clip()
    path = tmp_path / f"model{ending}"
    stored = {**state, "transformer.resblocks.0.attn_mask": torch.zeros(77, 77)}
    if ending == ".pt":
        torch.save({"epoch": 2, "state_dict": {f"module.{name}": value for name, value in stored.items()}}, path)
    else:
        save_file(stored, path)
    images = torch.randn(2, 3, 128, 128)
    encoder = imported(path, tmp_path)
    expected = vit_features(state, "visual.", images, activation=F.gelu)
    assert_images_alike(encoder, of_length_one(expected), images)
    assert encoder.spec.architecture == "tiny-vit"
    assert "The activation is not stated in the file: GELU is assumed" in capsys.readouterr().err
    assert_texts_alike(encoder, state, F.gelu)
    (tmp_path / "quick").mkdir()
    encoder = imported(path, tmp_path / "quick", "--quickgelu", "true", "--normalized", "false")
    assert_images_alike(encoder, vit_features(state, "visual.", images), images)
    assert "activation" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_texts_are_imported_for_every_image_size(kind, tmp_path):
    vit, size = kind == "vit", (64, 96) if kind == "vit" else (96, 96)
    visual = vit_state("visual.", grid=(4, 6)) if vit else resnet_state("visual.", grid=3)
    state = {**visual, **text_state(), "logit_scale": torch.tensor(4.6)}
    save_file(state, tmp_path / "clip.safetensors")
    encoder = imported(tmp_path / "clip.safetensors", tmp_path, "--image_size", f"[{size[0]},{size[1]}]")
    images = torch.randn(2, 3, *size)
    if vit:
        expected = vit_features(state, "visual.", images, activation=F.gelu)
    else:
        expected = attention_pooled(state, "visual.", resnet_map(state, "visual.", images), heads=16)
    assert_images_alike(encoder, of_length_one(expected), images)
    assert_texts_alike(encoder, state, F.gelu)


def open_clip_folder(folder, state, weights, **model):
    folder.mkdir()
    vision = {"image_size": 128, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16}
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
    text = {"layers": 2, "width": 64, "heads": 2}
    config = {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text, **model},
        "preprocess_cfg": pixels,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights.endswith(".bin"):
        torch.save(state, folder / weights)
    else:
        save_file(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_of_open_clip_gives_its_activation_and_pixel_statistics(weights, quick, tmp_path):
    state = vit_clip()
    folder = open_clip_folder(tmp_path / "model", state, weights, quick_gelu=quick)
    images = torch.randn(2, 3, 128, 128)
    activation = quick_gelu if quick else F.gelu
    expected = of_length_one(vit_features(state, "visual.", images, activation=activation))
    for path, out in ((folder, tmp_path / "a"), (folder / weights, tmp_path / "b")):
        encoder = imported(path, out)
        assert_images_alike(encoder, expected, images)
        assert (encoder.spec.mean, encoder.spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        assert encoder.spec.resize == "bilinear"
    assert_texts_alike(encoder, state, activation)


def hugging_face_names(state):
    """A CLIP's weights as transformers names and cuts them."""
    named = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(len(state["visual.positional_embedding"]))[None],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    for theirs, ours in (
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
    ):
        named |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        layer = 0
        while f"{prefix}transformer.resblocks.{layer}.ln_1.weight" in state:
            ours, theirs = f"{prefix}transformer.resblocks.{layer}.", f"{tower}.encoder.layers.{layer}."
            for part in ("weight", "bias"):
                named |= {
                    f"{theirs}layer_norm1.{part}": state[f"{ours}ln_1.{part}"],
                    f"{theirs}layer_norm2.{part}": state[f"{ours}ln_2.{part}"],
                    f"{theirs}mlp.fc1.{part}": state[f"{ours}mlp.c_fc.{part}"],
                    f"{theirs}mlp.fc2.{part}": state[f"{ours}mlp.c_proj.{part}"],
                    f"{theirs}self_attn.out_proj.{part}": state[f"{ours}attn.out_proj.{part}"],
                }
                pieces = state[f"{ours}attn.in_proj_{part}"].chunk(3)
                for name, piece in zip("qkv", pieces, strict=True):
                    named[f"{theirs}self_attn.{name}_proj.{part}"] = piece.clone()
            layer += 1
    return named


def hugging_face_folder(
    folder, state, *, heads=4, width=128, text_heads=2, vision_act="quick_gelu", text_act="quick_gelu"
):
    folder.mkdir()
    vision = {"hidden_size": width, "num_attention_heads": heads, "hidden_act": vision_act}
    text = {"num_attention_heads": text_heads, "hidden_act": text_act}
    config = {"model_type": "clip", "vision_config": vision, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_folder_of_hugging_face_gives_its_image_features_and_texts(act, tmp_path):
    state = vit_clip()
    folder = hugging_face_folder(tmp_path / "model", hugging_face_names(state), vision_act=act, text_act=act)
    encoder = imported(folder, tmp_path)
    images = torch.randn(2, 3, 128, 128)
    activation = quick_gelu if act == "quick_gelu" else F.gelu
    assert_images_alike(encoder, of_length_one(vit_features(state, "visual.", images, activation=activation)), images)
    assert (encoder.spec.mean, encoder.spec.std) == ((0.4, 0.4, 0.4), (0.3, 0.3, 0.3))
    assert_texts_alike(encoder, state, activation)


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_weights_in_several_files_are_those_of_one(ending, tmp_path):
    names = hugging_face_names(vit_clip())
    folder = hugging_face_folder(tmp_path / "model", names)
    whole = imported(folder, tmp_path)
    (folder / "pytorch_model.bin").unlink()
    stem, save = ("model", save_file) if ending == ".safetensors" else ("pytorch_model", torch.save)
    files = {name: f"{stem}-0000{1 + index % 2}-of-00002{ending}" for index, name in enumerate(names)}
    for file in set(files.values()):
        save({name: names[name] for name in names if files[name] == file}, folder / file)
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    main(["import", str(folder), "--out", str(tmp_path / "parts")])
    parts = progeo.load_encoder(tmp_path / "parts").state_dict()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.state_dict().items())
    (folder / file).unlink()
    with pytest.raises(SystemExit, match=rf"There is no file .*{file}\."):
        main(["import", str(folder), "--out", str(tmp_path / "less")])


def test_an_index_of_files_names_none_outside_its_folder(tmp_path):
    folder = hugging_face_folder(tmp_path / "model", {})
    (folder / "pytorch_model.bin").unlink()
    torch.save(hugging_face_names(vit_clip()), tmp_path / "other.bin")
    for name in ("../other.bin", str(tmp_path / "other.bin"), ".."):
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(SystemExit, match=r"There is no file .*model/(other\.bin|\.\.)\."):
            imported(folder, tmp_path)


@pytest.mark.slow
def test_full_size_of_hugging_face_and_open_clip_give_the_same(tmp_path):
    state = {**vit_state("visual.", **FULL_VIT), **text_state(**FULL_TEXT), "logit_scale": torch.tensor(4.6)}
    folder = hugging_face_folder(tmp_path / "model", hugging_face_names(state), heads=12, width=768, text_heads=8)
    images = torch.randn(1, 3, 224, 224)
    expected = of_length_one(vit_features(state, "visual.", images, heads=12))
    encoder = imported(folder, tmp_path)
    assert encoder.spec.architecture == "ViT-B-32-quickgelu"
    assert_images_alike(encoder, expected, images)
    assert_texts_alike(encoder, state, quick_gelu)
    save_file(state, tmp_path / "open_clip.safetensors")
    again = imported(tmp_path / "open_clip.safetensors", tmp_path / "b", "--quickgelu", "true")
    assert_images_alike(again, expected, images)


def test_a_clip_without_its_texts_is_an_encoder_that_is_not_compared_with_texts(tmp_path, capsys):
    save_file(vit_state("visual."), tmp_path / "visual.safetensors")
    encoder = imported(tmp_path / "visual.safetensors", tmp_path)
    assert encoder.spec.text_weights is None
    assert {path.name for path in (tmp_path / "encoder").iterdir()} == {"model.safetensors", "model.json"}
    assert "Descriptors cannot be compared with texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("ln_final.bias"), r"ln_final\.bias should be \(64,\), is missing"),
        (lambda state: state.update({"transformer.more": torch.zeros(2)}), r"transformer\.more should be absent"),
        (lambda state: state.update(text_projection=torch.zeros(64, 9)), r"text_projection should be \(64, 128\)"),
    ],
)
def test_texts_that_do_not_fit_are_named_and_skipped(change, reason, tmp_path, capsys):
    state = vit_clip()
    change(state)
    save_file(state, tmp_path / "clip.safetensors")
    encoder = imported(tmp_path / "clip.safetensors", tmp_path)
    images = torch.randn(1, 3, 128, 128)
    assert_images_alike(encoder, of_length_one(vit_features(state, "visual.", images, activation=F.gelu)), images)
    assert encoder.spec.text_weights is None
    assert re.search(f"cannot be compared with texts.*{reason}", capsys.readouterr().err)
    assert not (tmp_path / "encoder/clip.safetensors").exists()


def test_the_file_that_is_given_is_read_with_the_configuration_of_its_name(tmp_path):
    states = [vit_clip() for _ in range(4)]
    folder = open_clip_folder(tmp_path / "model", states[0], "open_clip_model.safetensors")
    torch.save(states[1], folder / "open_clip_pytorch_model.bin")
    hugging_face_folder(tmp_path / "other", hugging_face_names(states[2]))
    for path in (tmp_path / "other").iterdir():
        path.rename(folder / path.name)
    save_file(hugging_face_names(states[3]), folder / "model.safetensors")
    images = torch.randn(1, 3, 128, 128)
    for path, state, mean, activation in (
        (folder, states[0], 0.5, F.gelu),
        (folder / "open_clip_model.safetensors", states[0], 0.5, F.gelu),
        (folder / "open_clip_pytorch_model.bin", states[1], 0.5, F.gelu),
        (folder / "pytorch_model.bin", states[2], 0.4, quick_gelu),
        (folder / "model.safetensors", states[3], 0.4, quick_gelu),
    ):
        encoder = imported(path, tmp_path / f"from_{path.name}")
        expected = of_length_one(vit_features(state, "visual.", images, activation=activation))
        assert_images_alike(encoder, expected, images)
        assert encoder.spec.mean == (mean,) * 3
    with pytest.raises(SystemExit, match=r"encoder is in use: name another folder"):
        main(["import", str(folder), "--out", str(tmp_path / "from_model/encoder")])
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        (folder / name).unlink()
    assert imported(folder, tmp_path / "only_transformers").spec.mean == (0.4,) * 3


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}),
        ("vision_cfg", "norm_kwargs", {"eps": 0.1}),
    ],
)
def test_a_folder_of_open_clip_is_imported_with_its_configuration(section, name, value, tmp_path, capsys):
    folder = open_clip_folder(tmp_path / "model", vit_clip(), "open_clip_model.safetensors")
    plain = imported(folder, tmp_path / "plain")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][section][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    encoder, images = imported(folder, tmp_path / "own"), torch.randn(1, 3, 128, 128)
    expected = load_clip("tiny-vit", str(folder)).encode_image(images, normalize=True)
    torch.testing.assert_close(encoder(images), expected)
    assert encoder.spec.configuration[section][name] == value
    assert not torch.allclose(plain(images), expected, atol=1e-6)
    whole = f"local-dir:{tmp_path / 'own/encoder/clip.safetensors'}"
    assert f"--model.architecture {whole} --model.weights {whole} trains it" in capsys.readouterr().err
    torch.testing.assert_close(load_clip(whole, whole).encode_image(images, normalize=True), expected)


@pytest.mark.parametrize(
    ("architecture", "visual"),
    [("ViT-B-16-SigLIP", "small-siglip"), ("coca_ViT-B-32", "small-coca"), ("roberta-ViT-B-32", "small-vit")],
)
def test_a_folder_of_a_clip_with_another_text_tower_gives_its_images_and_texts(
    architecture, visual, hub_cache, tmp_path
):
    register_small_towers()
    text, more = shrunk(architecture)
    values = {"embed_dim": 64, "vision_cfg": SMALL_TOWERS[visual], "text_cfg": text, **more}
    clip = load_clip("tiny-vit", "random", configuration=ClipConfiguration(values), seed=3)
    (folder := tmp_path / "model").mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}))
    save_file({name: weight.clone() for name, weight in clip.state_dict().items()}, folder / OPEN_CLIP_WEIGHTS[0])
    encoder, images, sentence = imported(folder, tmp_path), torch.randn(2, 3, 64, 64), "A narrow street."
    torch.testing.assert_close(encoder(images), clip.encode_image(images, normalize=True))
    expected = F.normalize(build_text_tower(clip).encode([sentence]))
    torch.testing.assert_close(torch.from_numpy(text_descriptor(encoder.spec, sentence)), expected)


def test_a_configuration_of_no_clip_is_refused(tmp_path):
    folder = open_clip_folder(tmp_path / "model", vit_clip(), "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["shape"] = "round"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"open_clip_config\.json is not of a CLIP of open_clip: unknown 'shape'"):
        imported(folder, tmp_path)


def test_folders_that_are_incomplete_or_of_another_model_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no CLIP: neither open_clip_config\.json nor config\.json"):
        main(["import", str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(SystemExit, match=r"config\.json is of a 'siglip', not of a clip"):
        main(["import", str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(SystemExit, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        main(["import", str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": [1]}))
    with pytest.raises(SystemExit, match=r"config\.json is not a configuration: its vision_config is a list"):
        main(["import", str(tmp_path)])
    names = hugging_face_names(vit_clip())
    folder = hugging_face_folder(tmp_path / "acts", names, text_act="gelu")
    with pytest.raises(SystemExit, match="hidden_act gelu, quick_gelu: it must be one of quick_gelu, gelu, and"):
        main(["import", str(folder)])
    with pytest.raises(SystemExit, match=r"no plain CLIP with QuickGELU .* head width 16"):
        main(["import", str(hugging_face_folder(tmp_path / "heads", names, heads=8))])
    del names["vision_model.encoder.layers.2.self_attn.k_proj.bias"]
    with pytest.raises(SystemExit, match=r"vision_model\.encoder\.layers\.2\.self_attn\.k_proj\.bias is missing"):
        main(["import", str(hugging_face_folder(tmp_path / "key", names))])
    folder = hugging_face_folder(tmp_path / "none", names)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(SystemExit, match=r"pytorch_model\.bin\.index\.json lists no files of weights"):
        main(["import", str(folder)])
    for name in ("vision_model.x", "text_model.x"):
        save_file({name: torch.zeros(1)}, tmp_path / "alone.safetensors")
        with pytest.raises(SystemExit, match=r"give the folder of it and its config\.json"):
            main(["import", str(tmp_path / "alone.safetensors")])


def set_in(file, *names, value):
    """Write a value into a configuration."""
    config = part = json.loads(file.read_text()) if file.exists() else {}
    for name in names[:-1]:
        part = part.setdefault(name, {})
    part[names[-1]] = value
    file.write_text(json.dumps(config))


def test_texts_of_other_attention_heads_are_skipped(tmp_path, capsys):
    folder = hugging_face_folder(tmp_path / "model", hugging_face_names(vit_clip()), text_heads=4)
    encoder = imported(folder, tmp_path)
    assert encoder.spec.text_weights is None
    assert not (tmp_path / "encoder/clip.safetensors").exists()
    log = capsys.readouterr().err
    assert re.search(r"cannot be compared with texts\. Their tower has 4 attention heads, that of .* has 2\.", log)


def test_pixel_statistics_are_those_of_processor_config_and_missing_ones_are_reported(tmp_path, capsys):
    folder = hugging_face_folder(tmp_path / "model", hugging_face_names(vit_clip()))
    (folder / "preprocessor_config.json").unlink()
    set_in(folder / "processor_config.json", "image_processor", value={"image_mean": [0.2] * 3, "image_std": [0.1] * 3})
    spec = imported(folder, tmp_path / "a").spec
    assert (spec.mean, spec.std, spec.resize) == ((0.2,) * 3, (0.1,) * 3, "bicubic")  # transformers' default
    assert "CLIP's are taken" not in capsys.readouterr().err
    (folder / "processor_config.json").unlink()
    spec = imported(folder, tmp_path / "b").spec
    assert (spec.mean, spec.resize) == ((0.48145466, 0.4578275, 0.40821073), "bilinear")
    assert "The pixel mean and std are not stated in the file: those of CLIP are assumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "value", "sentence"),
    [
        (["config", "vision_config", "num_attention_heads"], 0, "num_attention_heads should be a number above 0, is 0"),
        (["config", "vision_config", "hidden_size"], "128", "hidden_size should be a number above 0, is '128'"),
        (["config", "text_config", "hidden_act"], ["gelu"], r"hidden_act should be a word, is \['gelu'\]"),
        (
            ["config", "vision_config", "layer_norm_eps"],
            0.01,
            "plain CLIP: its layer_norm_eps is 0.01, not 1e-05",
        ),
        (
            ["config", "text_config", "layer_norm_eps"],
            1e-6,
            "plain CLIP: its layer_norm_eps is 1e-06, not 1e-05",
        ),
        (["preprocessor_config", "image_mean"], 0.5, "image_mean should be three numbers from 0 to 1, is 0.5"),
        (["preprocessor_config", "image_mean"], [0.5], r"image_mean should be three numbers from 0 to 1, is \[0\.5\]"),
        (["preprocessor_config", "image_mean"], ["a"] * 3, "image_mean should be three numbers from 0 to 1"),
        (["preprocessor_config", "image_std"], [0.5, 0.5, 0], "image_std should be three numbers from 0.001 to 1"),
        (["preprocessor_config", "resample"], 1, "resample should be 2 or 3, is 1"),
        (["preprocessor_config", "resample"], [2], r"resample should be 2 or 3, is \[2\]"),
        (["processor_config", "image_processor"], [1], "its image_processor is a list"),
    ],
)
def test_invalid_values_of_a_configuration_are_refused(names, value, sentence, tmp_path):
    folder = hugging_face_folder(tmp_path / "model", {"x": torch.zeros(1)})
    set_in(folder / f"{names[0]}.json", *names[1:], value=value)
    with pytest.raises(SystemExit, match=rf"{names[0]}\.json.*{sentence}"):
        imported(folder, tmp_path)


@pytest.mark.parametrize(
    ("said", "options", "resize"),
    [
        ({"interpolation": "bicubic"}, [], "bicubic"),
        ({}, [], "bicubic"),  # open_clip's default
        ({"interpolation": "bicubic"}, ["--resize", "bilinear"], "bilinear"),
        ({"interpolation": "bilinear"}, ["--resize", "bicubic"], "bicubic"),
        ({"interpolation": "random"}, [], "interpolation should be 'bilinear' or 'bicubic', is 'random'"),
    ],
)
def test_images_of_a_folder_of_open_clip_are_resized_as_it_says_unless_set(said, options, resize, tmp_path, capsys):
    folder = open_clip_folder(tmp_path / "model", vit_clip(), "open_clip_model.safetensors")
    set_in(folder / "open_clip_config.json", "preprocess_cfg", value=said)
    if resize.startswith("interpolation"):
        with pytest.raises(SystemExit, match=rf"open_clip_config\.json: {resize}"):
            imported(folder, tmp_path, *options)
        return
    encoder = imported(folder, tmp_path, *options)
    assert encoder.spec.resize == resize
    assert f"{resize} resizing, descriptors of" in capsys.readouterr().err
    assert build_encoder("tiny-vit", encoder.spec.text_weights).spec.resize == resize


def test_queries_and_keys_of_different_shapes_are_refused(tmp_path):
    names = hugging_face_names(vit_clip())
    names["vision_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(3, 5)
    with pytest.raises(
        SystemExit, match=r"q_proj\.weight should have the shape of its key and of its value, has \(128"
    ):
        imported(hugging_face_folder(tmp_path / "model", names), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("conv1.weight", "positional_embedding", "proj"),
        *("layer1.0.conv1.weight", "attnpool.c_proj.weight", "attnpool.positional_embedding"),
    ],
)
@pytest.mark.parametrize("shape", [(), (7,), (0, 5)])
def test_tensors_of_other_dimensions_are_refused_by_their_name(name, shape, tmp_path):
    state = {**(vit_state if name in ("positional_embedding", "proj") else resnet_state)("visual.")}
    state[f"visual.{name}"] = torch.zeros(shape)
    torch.save(state, tmp_path / "clip.pt")
    sentence = rf"{re.escape(name)} should be a [24]-d tensor with values, is {re.escape(str(shape))}\."
    with pytest.raises(ValueError, match=sentence):
        read_encoder(open_source(tmp_path / "clip.pt", Choices()), Choices())


@pytest.mark.parametrize("name", ["aggregation.3.weight", "classifier.0.weight"])
def test_a_head_of_other_dimensions_is_refused_by_its_name(name, tmp_path):
    state = {"backbone.0.weight": torch.zeros(64, 3, 7, 7), name: torch.tensor(1.0)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} should be a 2-d tensor with values, is \(\)\."):
        read_encoder(open_source(tmp_path / "model.pth", Choices()), Choices())


def test_a_visual_tower_of_another_kind_is_refused(tmp_path):
    state = {"visual.trunk.patch_embed.proj.weight": torch.zeros(8, 3, 16, 16), "logit_scale": torch.tensor(1.0)}
    save_file(state, tmp_path / "siglip.safetensors")
    with pytest.raises(SystemExit, match=r"are not of a plain CLIP: visual\.conv1\.weight is missing"):
        imported(tmp_path / "siglip.safetensors", tmp_path)
    state = {name: tensor for name, tensor in resnet_state("visual.").items() if "attnpool" not in name}
    save_file(state, tmp_path / "visual.safetensors")
    with pytest.raises(SystemExit, match=r"not complete: attnpool\.positional_embedding is missing"):
        imported(tmp_path / "visual.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("visual.ln_post.bias"), r"visual\.ln_post\.bias should be \(128,\), is missing"),
        (lambda state: state.update({"visual.extra": torch.zeros(2)}), r"visual\.extra should be absent"),
        (lambda state: state.pop("visual.conv1.weight"), r"conv1\.weight is missing"),
        (
            lambda state: state.update({"visual.proj": torch.ones(128, 128, dtype=torch.int64)}),
            r"visual\.proj should hold fractions, holds torch\.int64",
        ),
        (lambda state: state.pop("visual.proj"), r"proj is missing"),
    ],
)
def test_missing_and_unexpected_keys_are_named(change, sentence, tmp_path):
    state = vit_clip()
    change(state)
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(SystemExit, match=sentence):
        imported(tmp_path / "clip.safetensors", tmp_path)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_code_in_an_archive_is_never_read(tmp_path):
    torch.jit.save(torch.jit.trace(Tree({**vit_clip(), **OPENAI_NUMBERS}), torch.rand(1)), tmp_path / "clip.pt")
    with zipfile.ZipFile(tmp_path / "clip.pt") as whole, zipfile.ZipFile(tmp_path / "less.pt", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, b"no code" if "/code/" in name else whole.read(name))
    assert imported(tmp_path / "less.pt", tmp_path).spec.architecture == "tiny-vit-quickgelu"
