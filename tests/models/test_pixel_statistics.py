"""Which mean and std pixels are normalized with: what weights say, what is set, and where nothing says it."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from progeo.export.weights import load_encoder, save_encoder
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder
from progeo.models.pixel_statistics import own_resize, pixel_statistics

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OTHER = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def numbers(statistics):
    return statistics.mean, statistics.std


@pytest.mark.parametrize(
    ("architecture", "weights", "expected"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k", HALF),
        ("ViT-L/14", "laion2b_s32b_b82k", HALF),
        ("ViT-L-14", "openai", CLIP),
        ("ViT-L-14-CLIPA", "datacomp1b", IMAGENET),
        ("ViT-L-14-CLIPA-336", "datacomp1b", IMAGENET),
        ("ViT-H-14-CLIPA", "datacomp1b", IMAGENET),
        ("ViT-H-14-CLIPA-336", "datacomp1b", IMAGENET),
        ("ViT-H-14-CLIPA-336", "laion2b", IMAGENET),
        ("ViT-bigG-14-CLIPA", "datacomp1b", IMAGENET),
        ("ViT-bigG-14-CLIPA-336", "datacomp1b", IMAGENET),
        ("RN50", "random", CLIP),
        ("resnet50", "IMAGENET1K_V1", IMAGENET),
        ("resnet50", "DEFAULT", IMAGENET),
        ("vgg16", "IMAGENET1K_FEATURES", ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))),
        ("resnet18", "random", IMAGENET),
        ("resnet18", "my.pth", IMAGENET),
        ("RN50", "my.pt", CLIP),
    ],
)
def test_they_are_those_that_the_weights_were_trained_with(architecture, weights, expected):
    found = numbers(pixel_statistics(architecture, weights))
    assert [pytest.approx(values, abs=1e-5) for values in expected] == list(found)


def test_every_pretrained_clip_that_open_clip_knows_has_its_own():
    for architecture, tag in open_clip.list_pretrained():
        said = open_clip.get_pretrained_cfg(architecture, tag)
        found = pixel_statistics(f"open_clip/{architecture}", tag)
        assert numbers(found) == (tuple(said["mean"]), tuple(said["std"]))
        assert found.resize == said["interpolation"]


@pytest.mark.parametrize(
    ("architecture", "weights", "resize"),
    [
        ("RN50", "openai", "bicubic"),
        ("ViT-B/32", "openai", "bicubic"),
        ("ViT-L-14-CLIPA", "datacomp1b", "bilinear"),
        ("RN50", "random", "bilinear"),
        ("RN50", "my.pt", "bilinear"),
        ("resnet50", "IMAGENET1K_V1", "bilinear"),
        ("timm/vit_small_patch14_dinov2", "lvd142m", "bilinear"),  # timm says bicubic, which is taken for CLIPs only
    ],
)
def test_images_are_resized_as_for_the_training_of_a_clip(architecture, weights, resize):
    assert own_resize(architecture, weights) == resize
    assert pixel_statistics(architecture, weights, normalization="clip").resize == resize
    for given in ("bilinear", "bicubic"):
        assert pixel_statistics(architecture, weights, normalization="clip", resize=given).resize == given


@pytest.mark.parametrize(
    ("said", "resize"),
    [
        ({"interpolation": "bilinear"}, "bilinear"),
        ({"interpolation": "bicubic", "mean": HALF[0], "std": HALF[1]}, "bicubic"),
        ({"interpolation": None}, "bicubic"),  # open_clip's default
        ({"mean": HALF[0], "std": HALF[1]}, "bicubic"),
        ({}, "bicubic"),
        (None, "bicubic"),
        ({"interpolation": "random"}, r"its interpolation must be bilinear or bicubic, got 'random': set `resize`"),
    ],
)
@pytest.mark.parametrize("source", ["hub", "beside"])
def test_images_are_resized_as_a_configuration_of_open_clip_says(source, said, resize, hub, tmp_path):
    config = {"model_cfg": open_clip.get_model_config("tiny-vit"), "preprocess_cfg": said}
    clip = load_clip("tiny-vit", "random")
    if source == "hub":
        hub(json.loads(json.dumps(config)), clip)
        weights = "hf-hub:someone/clip"
    else:
        weights = str(tmp_path / "open_clip_model.safetensors")
        save_file({name: tensor.clone() for name, tensor in clip.state_dict().items()}, weights)
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if resize.startswith("its"):
        with pytest.raises(ValueError, match=resize):
            build_encoder("tiny-vit", weights, 64)
        assert build_encoder("tiny-vit", weights, 64, resize="bicubic").spec.resize == "bicubic"
    else:
        assert build_encoder("tiny-vit", weights, 64).spec.resize == resize
        assert build_encoder("tiny-vit", weights, 64, normalization="clip").spec.resize == resize


@pytest.mark.parametrize("metadata", [{"interpolation": "bicubic"}, {"interpolation": "bilinear"}, {"a": "b"}, None])
def test_images_are_resized_as_the_metadata_of_a_file_say(metadata, tmp_path):
    file = str(tmp_path / "clip.safetensors")
    save_file({"a": torch.zeros(1)}, file, metadata)
    assert own_resize("tiny-vit", file) == (metadata or {}).get("interpolation", "bilinear")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalization": "clip"}, CLIP),
        ({"normalization": "imagenet"}, IMAGENET),
        ({"mean": [0.1, 0.2, 0.3], "std": (0.4, 0.5, 0.6)}, OTHER),
        ({"normalization": "clip", "mean": OTHER[0], "std": OTHER[1]}, OTHER),
    ],
)
def test_what_is_set_comes_before_what_weights_say(settings, expected):
    assert numbers(pixel_statistics("ViT-L-14", "laion2b_s32b_b82k", **settings)) == expected
    spec = build_encoder("tiny-vit", "random", 64, **settings).spec
    assert (spec.mean, spec.std) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mean": HALF[0]}, r"`mean` and `std` go together, got \(0\.5, 0\.5, 0\.5\) and None"),
        ({"std": HALF[0]}, r"`mean` and `std` go together, got None and \(0\.5, 0\.5, 0\.5\)"),
        ({"mean": (123.7, 116.3, 103.5), "std": (1, 1, 1)}, r"`mean` must be three numbers from 0 to 1, .*123\.7"),
        ({"mean": (0.5, 0.5), "std": HALF[1]}, r"`mean` must be three numbers"),
        ({"mean": (0.5, 0.5, float("nan")), "std": HALF[1]}, r"`mean` must be three numbers"),
        ({"mean": HALF[0], "std": (0.5, 0.5, 0)}, r"`std` must be three numbers from 0\.001 to 1"),
    ],
)
def test_what_no_pixels_can_have_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        pixel_statistics("tiny-vit", "random", **settings)


@pytest.mark.parametrize(
    ("metadata", "expected", "source"),
    [
        ({"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}, HALF, "those of {}"),
        ({"mean": "[0.5, 0.5, 0.5]"}, (HALF[0], CLIP[1]), "those of {}, but the std is CLIP's"),
        ({"architecture": "tiny-vit"}, CLIP, "CLIP's since those of {} are unknown"),
        (None, CLIP, "CLIP's since those of {} are unknown"),
    ],
)
def test_a_file_says_them_in_its_metadata_and_what_is_taken_otherwise_is_told(metadata, expected, source, tmp_path):
    file = str(tmp_path / "clip.safetensors")
    save_file(
        {name: tensor.clone() for name, tensor in load_clip("tiny-vit", "random").state_dict().items()}, file, metadata
    )
    found = pixel_statistics("tiny-vit", file)
    assert numbers(found) == expected
    assert found.source == source.format(file)
    encoder = build_encoder("tiny-vit", file, 64)
    assert torch.equal(encoder.mean, torch.tensor(expected[0]))
    assert torch.equal(encoder.std, torch.tensor(expected[1]))


@pytest.mark.parametrize("name", ["0aef4c", "pytorch_model.bin", "CLIP.SAFETENSORS"])
def test_a_file_of_safetensors_is_one_under_any_name(name, tmp_path):
    state = {name: tensor.clone() for name, tensor in load_clip("tiny-vit", "random", seed=7).state_dict().items()}
    save_file(state, tmp_path / name, {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    encoder = build_encoder("tiny-vit", str(tmp_path / name))
    assert (encoder.spec.mean, encoder.spec.std) == HALF
    assert torch.equal(encoder.backbone.proj, state["visual.proj"])


def test_texts_of_a_link_in_the_cache_of_the_hub_are_found_again(tmp_path):
    clip = load_clip("tiny-vit-quickgelu", "random", seed=7)
    save_file({name: tensor.clone() for name, tensor in clip.state_dict().items()}, tmp_path / "0aef4c")
    (tmp_path / "snapshot").mkdir()
    weights = tmp_path / "snapshot/open_clip_model.safetensors"
    weights.symlink_to("../0aef4c")
    config = {"model_cfg": open_clip.get_model_config("tiny-vit-quickgelu"), "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "snapshot/open_clip_config.json").write_text(json.dumps(config))
    save_encoder(tmp_path / "encoder", build_encoder("tiny-vit", str(weights)), provenance={}, recalls={})
    spec = load_encoder(tmp_path / "encoder").spec
    found = load_clip(spec.architecture, spec.text_weights).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in clip.state_dict().items())


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_file_of_open_clip_says_them_in_the_configuration_beside_it(weights, tmp_path):
    state = {name: tensor.clone() for name, tensor in load_clip("tiny-vit", "random").state_dict().items()}
    path = tmp_path / weights
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    config = {
        "model_cfg": open_clip.get_model_config("tiny-vit"),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert numbers(pixel_statistics("tiny-vit", str(path))) == HALF
    spec = build_encoder("tiny-vit", str(path), 64).spec
    assert (spec.mean, spec.std) == HALF


@pytest.mark.parametrize(
    ("mean", "sentence"),
    [
        ("half", "The metadata of .*clip.safetensors have a configuration, a mean or a std that is not JSON"),
        ("[0.5]", r"clip.safetensors: its mean must be three numbers from 0 to 1"),
        ("[128, 128, 128]", r"clip.safetensors: its mean must be three numbers from 0 to 1"),
    ],
)
def test_metadata_that_no_pixels_can_have_are_refused_unless_others_are_set(mean, sentence, tmp_path):
    file = str(tmp_path / "clip.safetensors")
    save_file({"a": torch.zeros(1)}, file, {"mean": mean, "std": "[0.5, 0.5, 0.5]"})
    with pytest.raises(ValueError, match=sentence):
        pixel_statistics("tiny-vit", file)
    assert numbers(pixel_statistics("tiny-vit", file, normalization="clip", resize="bilinear")) == CLIP


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"mean": HALF[0], "std": HALF[1]}, HALF),
        ({"mean": HALF[0]}, (HALF[0], CLIP[1])),
        ({"mean": None, "std": None}, CLIP),
        ({}, CLIP),
        (None, CLIP),
    ],
)
def test_a_repository_of_the_hub_says_them_in_its_configuration(said, expected, hub):
    config = {"model_cfg": open_clip.get_model_config("tiny-vit"), "preprocess_cfg": said}
    hub(json.loads(json.dumps(config)), load_clip("tiny-vit", "random", seed=7))
    spec = build_encoder("tiny-vit", "hf-hub:someone/clip", 64).spec
    assert (spec.mean, spec.std) == expected


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, CLIP),
        ({"mean": [0.1] * 3}, ((0.1,) * 3, CLIP[1])),
        ({"std": [0.1] * 3}, (CLIP[0], (0.1,) * 3)),
        ({"mean": 3, "std": 3}, "its mean must be three numbers from 0 to 1"),
        ({"mean": "gray"}, "its mean must be three numbers from 0 to 1"),
    ],
)
def test_an_address_may_state_one_of_the_two_alone_and_nothing_that_is_no_color(stated, expected, tmp_path):
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": stated}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    address = f"local-dir:{tmp_path}"
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            pixel_statistics(address, address)
    else:
        assert numbers(pixel_statistics(address, address)) == expected
