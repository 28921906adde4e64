import json
import os
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from progeo.engine.log import start_log
from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture
from progeo.models.backbones.clip_towers import resize_input
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.open_clip import OpenClip
from progeo.models.encoder import build_encoder

TINY = ("tiny-resnet", "tiny-vit")
PUBLISHED = ("RN50", "RN101", "ViT-B-16", "ViT-B-32")


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize(("image_size", "shape"), [(None, (128, 128)), (96, (96, 96)), ((96, 160), (96, 160))])
def test_any_input_size_gives_features_of_the_texts_dimension(architecture, image_size, shape):
    clip = load_clip(architecture, "random", image_size)
    features = clip.encode_image(torch.randn(2, 3, *shape))
    assert features.shape == (2, clip.text_projection.shape[1])
    assert not clip.training


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_published_backbones_take_sizes_that_are_not_square(architecture):
    clip = load_clip(architecture, "random", (192, 256))
    with torch.no_grad():
        assert clip.encode_image(torch.randn(1, 3, 192, 256)).shape == (1, clip.text_projection.shape[1])


@pytest.mark.parametrize("name", ["tiny/vit", "open_clip/tiny-vit"])
def test_an_architecture_may_be_spelled_with_a_slash_or_its_family(name):
    clip = load_clip(name, "random")
    assert torch.equal(clip.visual.proj, load_clip("tiny-vit", "random").visual.proj)
    assert resolved_architecture(name, configuration_of(clip)) == "tiny-vit"


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_clip("tiny-vit", "random", seed=seed).visual.proj for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_are_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    spec = build_encoder("tiny-vit", "random").spec
    config = {"model_cfg": spec.configuration, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.1] * 3}}
    (tmp_path / "random/open_clip_config.json").write_text(json.dumps(config))
    assert build_encoder("tiny-vit", "random").spec == spec


@pytest.mark.parametrize("interpolation", ["edges", "corners"])
def test_position_embeddings_are_interpolated_over_the_grid_and_the_first_token_stays(interpolation):
    native = load_clip("tiny-vit", "random").visual.positional_embedding  # 8 x 8 patches
    resized = load_clip("tiny-vit", "random", (128, 256), interpolation=interpolation).visual.positional_embedding
    assert resized.shape == (1 + 8 * 16, 128)
    assert torch.equal(resized[0], native[0])
    corners = resized[1:].reshape(8, 16, -1)[[0, 0, -1, -1], [0, -1, 0, -1]]
    native_corners = native[1:].reshape(8, 8, -1)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, native_corners, atol=1e-5) == (interpolation == "corners")


def test_resizing_equals_the_published_interpolation():
    native = load_clip("tiny-vit", "random").visual.positional_embedding.detach()
    ours = load_clip("tiny-vit", "random", 256, interpolation="corners").visual.positional_embedding
    grid = native[1:].T.reshape(1, 128, 8, 8)
    published = torch.nn.functional.interpolate(grid, size=16, mode="bicubic", align_corners=True)
    torch.testing.assert_close(ours[1:], published.reshape(128, 256).T)


def test_a_vit_run_at_another_size_equals_one_loaded_for_that_size():
    images = torch.randn(2, 3, 96, 160)
    native, resized = load_clip("tiny-vit", "random"), load_clip("tiny-vit", "random", (96, 160))
    at_any_size = build_encoder("tiny-vit", "random", normalized=False)
    assert torch.equal(at_any_size.backbone.proj, native.visual.proj)
    torch.testing.assert_close(at_any_size(images), resized.visual(images))


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("extension", [".safetensors", ".pt"])
def test_a_local_file_gives_its_weights(tmp_path, architecture, extension):
    source = load_clip(architecture, "random", seed=7)
    path = tmp_path / f"clip{extension}"
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, path) if extension == ".safetensors" else torch.save(state, path)
    images = torch.randn(2, 3, 128, 128)
    assert torch.equal(load_clip(architecture, str(path)).encode_image(images), source.encode_image(images))


def test_weights_from_the_hub_are_read_from_its_cache_in_its_layout(hub):
    source = load_clip("tiny-vit", "random", seed=7)
    hub({"model_cfg": open_clip.get_model_config("tiny-vit"), "preprocess_cfg": {}}, source)
    clip = load_clip("tiny-vit", "hf-hub:someone/clip")
    assert torch.equal(clip.visual.proj, source.visual.proj)
    with pytest.raises(ValueError, match="does not fit"):
        load_clip("tiny-resnet", "hf-hub:someone/clip")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text_cfg.no_causal_mask", True),
        ("text_cfg.pool_type", "last"),
        pytest.param("text_cfg.heads", 4, marks=pytest.mark.slow),
        pytest.param("text_cfg.norm_kwargs", {"eps": 0.1}, marks=pytest.mark.slow),
        ("vision_cfg.norm_kwargs", {"eps": 0.1}),
        pytest.param("vision_cfg.act_kwargs", {"approximate": "tanh"}, marks=pytest.mark.slow),
        ("vision_cfg.head_width", 64),
        pytest.param("vision_cfg.pool_type", "avg", marks=pytest.mark.slow),
        ("quick_gelu", True),
    ],
)
def test_weights_of_the_hub_and_of_a_folder_bring_their_configuration_which_is_used(
    setting, value, hub, architecture, tmp_path
):
    source = load_clip(architecture("own", {setting: value}), "random", seed=7)
    hub({"model_cfg": configuration_of(source).to_json()}, source)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    named, (folder,) = load_clip("tiny-vit", str(tmp_path / "weights.pt")), tmp_path.rglob("abc")
    encode, inputs = "encode_image", torch.randn(2, 3, 128, 128)
    if setting.startswith("text"):
        encode, inputs = "encode_text", open_clip.tokenize(["a narrow street"])
    wanted, own, usual = getattr(source, encode)(inputs), configuration_of(source), configuration_of(named)
    for weights in ("hf-hub:someone/clip", folder, f"local-dir:{folder}", folder / "open_clip_model.safetensors"):
        clip = load_clip("tiny-vit", str(weights))
        assert getattr(clip, encode)(inputs).equal(wanted)
        assert configuration_of(clip).fingerprint == own.fingerprint
    assert not torch.allclose(getattr(named, encode)(inputs), wanted, rtol=1e-3)
    assert usual.fingerprint != own.fingerprint
    same_image = usual.feature_settings(visual_only=True) == own.feature_settings(visual_only=True)
    assert same_image == (encode == "encode_text")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("vision_cfg.width", 64, "its vision_cfg.width is 64 where tiny-vit has 128. To take whatever it is, set"),
        ("vision_cfg.layers", 10**9, r"its vision_cfg\.layers is 1000000000, which must be from 1 to 1000"),
        ("vision_cfg.layers", "3", "expected .* got '3' in layers"),
        ("vision_cfg.new", 1, "unknown 'new'; its fields are layers"),
        (
            "vision_cfg.timm_model_name",
            "hf-hub:someone/network",
            "timm_model_name hf-hub:someone/network is no network",
        ),
        (
            "text_cfg.tokenizer_kwargs",
            {"trust_remote_code": True},
            "tokenizer_kwargs have an unknown trust_remote_code",
        ),
        ("text_cfg", 3, "its text_cfg is no mapping"),
        ("text_cfg", None, "it has no text_cfg"),
        ("embed_dim", "64", "its embed_dim is '64'"),
        ("code", "import os", "it has an unknown code"),
    ],
)
def test_a_configuration_of_other_shapes_or_that_is_none_is_refused_in_one_sentence(setting, value, words, hub):
    config = open_clip.get_model_config("tiny-vit")
    part, _, name = setting.rpartition(".")
    (config[part] if part else config)[name] = value
    hub({"model_cfg": config}, load_clip("tiny-vit", "random"))
    with pytest.raises(ValueError, match=words) as error:
        load_clip("tiny-vit", "hf-hub:someone/clip")
    assert "hf-hub:someone/clip" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("text_cfg.heads", 3, "open_clip cannot build a CLIP of this configuration: embed_dim must be divisible by"),
        ("text_cfg.layers", None, "open_clip cannot build a CLIP of this configuration: 'NoneType' object cannot"),
        ("vision_cfg.norm_kwargs", {"run": 1}, "open_clip cannot build .* unexpected keyword argument 'run'"),
        ("vision_cfg.pool_type", "x", "open_clip cannot build a CLIP of this configuration: AssertionError"),
        ("init_logit_scale", "x", "open_clip cannot build a CLIP of this configuration: only integer tensors"),
        ("vision_cfg.head_width", 0, "its vision_cfg.head_width is 0, which must be from 1 to"),
        ("vision_cfg.patch_size", -1, "its vision_cfg.patch_size is -1, which must be from 1 to"),
        ("vision_cfg.mlp_ratio", 1e300, "its vision_cfg.mlp_ratio is 1e.300, which must be from 1 to"),
        ("vision_cfg.image_size", 65536, "its vision_cfg has a position embedding of more than 134,217,728 numbers"),
        ("text_cfg.width", 2**15, "its configuration is of [0-9,]* weights, more than open_clip_model.safetensors can"),
    ],
)
def test_a_configuration_that_cannot_be_built_or_takes_memory_is_refused_in_one_sentence(setting, value, words, hub):
    config = open_clip.get_model_config("tiny-vit")
    part, _, name = setting.rpartition(".")
    (config[part] if part else config)[name] = value
    hub({"model_cfg": config}, load_clip("tiny-vit", "random"))
    address = "hf-hub:someone/clip"
    for build in (load_clip, build_encoder)[: 1 if "text" in setting or "logit" in setting else 2]:
        for weights in (address, "random")[: 1 if "weights" in words else 2]:
            with pytest.raises(ValueError, match=words) as error:
                build(address, weights)
            assert "\n" not in str(error.value)


def test_an_address_as_architecture_takes_whatever_the_weights_are(hub, architecture):
    source = load_clip(architecture("own", {"vision_cfg.width": 64, "vision_cfg.layers": 1}), "random", seed=7)
    hub({"model_cfg": configuration_of(source).to_json()}, source)
    address, images = "hf-hub:someone/clip", torch.randn(2, 3, 128, 128)
    assert load_clip(address, address).encode_image(images).equal(source.encode_image(images))
    assert configuration_of(load_clip(address, "random")) == configuration_of(load_clip(address, address))
    encoder = build_encoder(address, address, normalized=False)
    torch.testing.assert_close(encoder.eval()(images), source.encode_image(images))
    assert encoder.spec.configuration == configuration_of(source).to_json()
    with pytest.raises(ValueError, match="`weights` 'openai' are not of hf-hub:someone/clip: set `weights`"):
        load_clip(address, "openai")


def test_a_repository_of_the_hub_has_the_activation_of_an_architecture_that_is_known(hub, architecture):
    plain = {"model_cfg": open_clip.get_model_config(architecture("plain", {}))}
    quick = {"model_cfg": {**plain["model_cfg"], "quick_gelu": True}}
    hub(quick, load_clip("plain", "random"))
    clip = load_clip("plain", "hf-hub:someone/clip")
    assert resolved_architecture("plain", configuration_of(clip)) == "plain"
    architecture("plain-quickgelu", {"quick_gelu": True})
    assert resolved_architecture("plain", configuration_of(clip)) == "plain-quickgelu"
    hub(plain, load_clip("plain", "random"))
    with pytest.raises(ValueError, match="its quick_gelu is False where plain-quickgelu has True"):
        load_clip("plain-quickgelu", "hf-hub:someone/clip")


def test_a_repository_of_the_hub_without_a_configuration_is_refused(hub):
    hub({}, load_clip("tiny-vit", "random"))
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not a configuration of open_clip: it has no"):
        load_clip("tiny-vit", "hf-hub:someone/clip")


def test_a_repository_of_the_hub_may_have_another_size_and_write_out_what_is_usual(hub):
    source = load_clip("tiny-vit", "random", 64, seed=7)
    config = open_clip.get_model_config("tiny-vit")
    config["vision_cfg"] |= {"image_size": 64, "pool_type": "tok", "mlp_ratio": 4.0}
    config["text_cfg"] |= {"pool_type": "argmax", "hf_tokenizer_name": None, "tokenizer_kwargs": {}}
    hub({"model_cfg": {**config, "custom_text": False}}, source)
    images = torch.randn(2, 3, 64, 64)
    assert load_clip("tiny-vit", "hf-hub:someone/clip").encode_image(images).equal(source.encode_image(images))


def test_a_pickle_of_the_hub_with_more_than_weights_is_refused_without_advice_to_run_it(hub, tmp_path):
    hub({"model_cfg": open_clip.get_model_config("tiny-vit")}, load_clip("tiny-vit", "random"))
    (weights,) = tmp_path.rglob("open_clip_model.safetensors")
    torch.save({"state_dict": {}, "args": Path("x")}, weights.with_name("open_clip_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"as tiny-vit: it holds more than weights\.$"):
        load_clip("tiny-vit", "hf-hub:someone/clip")


@pytest.mark.slow
def test_openai_weights_get_quick_gelu_and_the_name_says_so(monkeypatch, tmp_path):
    """The tag's real configuration is used; only the download is replaced by a file of random weights."""
    path = tmp_path / "openai.pt"
    torch.save(load_clip("ViT-B-32", "random").state_dict(), path)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: str(path))
    clip = load_clip("ViT-B-32", "openai")
    assert any(isinstance(module, QuickGELU) for module in clip.modules())
    assert resolved_architecture("ViT-B-32", configuration_of(clip)) == "ViT-B-32-quickgelu"
    assert resolved_architecture("ViT-B/32", configuration_of(clip)) == "ViT-B-32-quickgelu"
    plain = load_clip("ViT-B/32", "laion2b_s34b_b79k")
    assert resolved_architecture("ViT-B-32", configuration_of(plain)) == "ViT-B-32"


@pytest.mark.parametrize(
    ("architecture", "weights", "words"),
    [
        ("RN5", "random", "`architecture` 'RN5' is not known"),
        ("RN50", "opena", r"neither a file, .* nor a tag of RN50 \(openai, yfcc15m, cc12m\)"),
        ("tiny-vit", "openai", "it has none"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_what_can(architecture, weights, words):
    with pytest.raises(ValueError, match=words):
        load_clip(architecture, weights)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_of_openai_has_quickgelu_and_one_of_another_network_is_refused(tmp_path, capsys):
    source = load_clip("tiny-vit-quickgelu", "random", seed=7)
    archive = torch.nn.Identity()
    for name, module in source.named_children():
        archive.add_module(name, module)
    for name, parameter in source.named_parameters(recurse=False):
        archive.register_parameter(name, parameter)
    for name in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(name, torch.tensor(77))
    torch.jit.save(torch.jit.trace(archive, torch.rand(1)), tmp_path / "clip.pt")
    images = torch.randn(2, 3, 128, 128)
    start_log()
    for architecture in ("tiny-vit", "tiny-vit-quickgelu"):
        clip = load_clip(architecture, str(tmp_path / "clip.pt"))
        assert torch.equal(clip.encode_image(images), source.encode_image(images))
        assert resolved_architecture(architecture, configuration_of(clip)) == "tiny-vit-quickgelu"
    assert capsys.readouterr().err == ""
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)), tmp_path / "other.pt")
    sentence = r"as tiny-vit: The weights do not fit tiny-vit: bias should be absent.* `progeo import` makes an encoder"
    with pytest.raises(ValueError, match=sentence):
        load_clip("tiny-vit", str(tmp_path / "other.pt"))


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("architecture", "taken", "other"),
    [
        ("tiny-vit", "GELU", "use the architecture tiny-vit-quickgelu for QuickGELU"),
        ("tiny-vit-quickgelu", "QuickGELU", "use the architecture tiny-vit for GELU"),
    ],
)
def test_weights_of_unknown_activation_get_that_of_the_architecture_and_a_log_line(
    architecture, taken, other, ending, tmp_path, capsys
):
    source, path = load_clip(architecture, "random", seed=7), tmp_path / f"fine{ending}"
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    if ending == ".pt":
        named = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "name": "fine", "state_dict": named, "scaler": Path("x")}, path)
    else:
        save_file(state, path)
    images = torch.randn(2, 3, 128, 128)
    start_log()
    assert torch.equal(load_clip(architecture, str(path)).encode_image(images), source.encode_image(images))
    said = capsys.readouterr().err
    assert f"{path}: the activation of these weights is unknown: {taken} is used; {other}\n" in said
    assert (f"{path}: skipped, not part of the weights: epoch, name, scaler\n" in said) == (ending == ".pt")


def test_a_file_beside_a_configuration_of_open_clip_has_its_activation(tmp_path, capsys):
    source, path = load_clip("tiny-vit-quickgelu", "random", seed=7), tmp_path / "open_clip_pytorch_model.bin"
    torch.save(source.state_dict(), path)
    config = tmp_path / "open_clip_config.json"
    start_log()
    images = torch.randn(2, 3, 128, 128)
    for quick in (True, False):
        model = {**open_clip.get_model_config("tiny-vit"), "quick_gelu": quick}
        config.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
        found = load_clip("tiny-vit", str(path)).encode_image(images)
        assert torch.equal(found, source.encode_image(images)) == quick
    assert capsys.readouterr().err == ""
    with pytest.raises(
        ValueError, match=r"as tiny-vit-quickgelu: .* its quick_gelu is False where tiny-vit-quickgelu has True"
    ):
        load_clip("tiny-vit-quickgelu", str(path))
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not a configuration of open_clip"):
        load_clip("tiny-vit", str(path))


@pytest.mark.parametrize(("architecture", "cells", "width"), [("tiny-vit", 64, 128), ("tiny-resnet", 16, 512)])
def test_weights_of_another_image_size_have_their_position_embedding_resized(architecture, cells, width, tmp_path):
    source = load_clip(architecture, "random", 192)
    torch.save(source.state_dict(), tmp_path / "larger.pt")
    clip = load_clip(architecture, str(tmp_path / "larger.pt"))
    name = "positional_embedding" if architecture == "tiny-vit" else "attnpool.positional_embedding"
    resize_input(source.visual, (128, 128), "edges")
    assert torch.equal(clip.visual.get_parameter(name), source.visual.get_parameter(name))
    state = {**source.state_dict(), f"visual.{name}": torch.zeros(1 + cells + 1, width)}
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=f"its position embedding is for {cells + 1} cells, which are no square"):
        load_clip(architecture, str(tmp_path / "odd.pt"))


def test_what_a_pickle_would_run_is_refused_without_advice_to_run_it(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    torch.save({"state_dict": load_clip("tiny-vit", "random").state_dict(), "x": Runs()}, tmp_path / "a.pt")
    sentence = (
        r"as tiny-vit: it is refused, nothing of it was run: it asks for posix\.system, which weights do not need"
    )
    with pytest.raises(ValueError, match=sentence):
        load_clip("tiny-vit", str(tmp_path / "a.pt"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt"}


def test_a_file_that_says_its_architecture_is_loaded_as_no_other(tmp_path):
    source, path = load_clip("tiny-vit", "random"), str(tmp_path / "clip.safetensors")
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, path, metadata={"architecture": "tiny-vit"})
    assert torch.equal(load_clip("tiny/vit", path).visual.proj, source.visual.proj)
    save_file(state, path, metadata={"architecture": "tiny-vit-quickgelu"})
    with pytest.raises(ValueError, match="as tiny-vit: by its metadata it is a tiny-vit-quickgelu: give that as `arch"):
        load_clip("tiny-vit", path)


def test_files_that_are_no_weights_or_those_of_another_network_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.pt").write_text("not weights at all")
    torch.save(load_clip("tiny-resnet", "random").state_dict(), tmp_path / "other.pt")
    for name in ("text.pt", "other.pt"):
        with pytest.raises(ValueError) as error:
            load_clip("tiny-vit", str(tmp_path / name))
        assert "could not be loaded as tiny-vit" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", TINY)
def test_a_tower_of_random_weights_is_that_of_the_complete_clip(architecture):
    whole = load_clip(architecture, "random", 96, seed=3).visual.state_dict()
    tower = OpenClip().load(NetworkSpec(architecture, 96), "random", seed=3).network.state_dict()
    assert tower.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tower.items())
