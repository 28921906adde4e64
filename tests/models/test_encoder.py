"""One contract for every encoder."""

import functools
import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import ExifTags, Image
from small_towers import register_small_towers

from progeo.data.decode import read_image
from progeo.models.backbones import find_family, freeze_layers
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import (
    Encoder,
    build_encoder,
    empty_encoder,
    projected,
    restore_encoder,
    spec_from_json,
    spec_to_json,
)
from progeo.models.thumbnail import ThumbnailEncoder

ENCODERS = {
    "resnet": lambda: build_encoder("tiny-resnet", "random", 64, descriptor_dim=32),
    "resnet, not square": lambda: build_encoder("tiny-resnet", "random", (64, 96)),
    "vit": lambda: build_encoder("tiny-vit", "random", (64, 96)),
    "vit, raw, ImageNet pixels": lambda: build_encoder(
        "tiny-vit", "random", normalized=False, normalization="imagenet", interpolation="corners"
    ),
    "resnet18": lambda: build_encoder("resnet18", "random", (64, 96), descriptor_dim=32, normalization="imagenet"),
    "efficientnet_b0": lambda: build_encoder("efficientnet_b0", "random", 64),
    "CLIP's own attention pooling": lambda: build_encoder("tiny-resnet", "random", (64, 96), aggregation="token"),
    "mean, of torchvision": lambda: build_encoder("resnet18", "random", 64, aggregation="mean"),
    "GeM of a ViT's map": lambda: build_encoder("tiny-vit", "random", 64, aggregation="gem", descriptor_dim=32),
    "mean, linear": lambda: build_encoder("resnet18", "random", 64, aggregation="mean_linear", descriptor_dim=32),
    "projected": lambda: projected(build_encoder("tiny-vit", "random"), torch.rand(16, 128), torch.rand(16)),
    "thumbnail": ThumbnailEncoder,
}


@functools.cache
def built(name):
    """An encoder that no test changes: some take seconds to build."""
    return ENCODERS[name]().eval()


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return built(request.param)


def test_descriptors_have_the_dimension_promised_at_any_size(encoder):
    for shape in ((64, 64), (96, 64), (70, 150), (63, 95)):
        with torch.no_grad():
            assert encoder(torch.rand(2, 3, *shape)).shape == (2, encoder.descriptor_dim)


def test_descriptors_do_not_depend_on_the_batch(encoder):
    images = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        together, alone = encoder(images), torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_preprocess_takes_pil_images_and_uint8_tensors_alike(encoder):
    pixels = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
    prepared = encoder.preprocess(pixels)
    assert prepared.shape == (3, *encoder.image_size)
    assert prepared.dtype == torch.float32
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(encoder.preprocess(picture), prepared)
    gray = encoder.preprocess(Image.new("L", (50, 50), 128))
    assert gray.shape == (3, *encoder.image_size)


def test_preprocess_treats_a_photo_as_its_file(encoder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    Image.fromarray((pixels // 256).astype(np.uint8)).save(tmp_path / "lying.jpg", exif=lying)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "16_bits.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as photo:
            before = (photo.size, photo.mode)
            assert torch.equal(encoder.preprocess(photo), encoder.preprocess(read_image(path)))
            assert (photo.size, photo.mode) == before
            assert torch.equal(encoder.preprocess(photo), encoder.preprocess(read_image(path)))


def test_preprocess_normalizes_with_mean_and_std(encoder):
    white = encoder.preprocess(torch.full((3, 40, 40), 255, dtype=torch.uint8))
    mean, std = torch.as_tensor(encoder.mean), torch.as_tensor(encoder.std)
    torch.testing.assert_close(white.amin(dim=(1, 2)), (1 - mean) / std)


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "thumbnail"])
def test_an_encoder_restored_from_its_spec_and_weights_is_equal_bit_for_bit(kind):
    encoder = built(kind)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    again = restore_encoder(spec_from_json(spec_to_json(encoder.spec)), state)
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(again(images), encoder(images))
    assert not again.training
    assert again.spec == encoder.spec
    assert all(p.device.type == "cpu" for p in [*again.parameters(), *again.buffers()])


def test_descriptors_are_of_length_one_unless_a_vit_is_left_raw():
    images = torch.rand(4, 3, 64, 64)
    for name in ENCODERS.keys() - {"thumbnail"}:
        lengths = built(name)(images).norm(dim=1)
        assert torch.allclose(lengths, torch.ones(4), atol=1e-5) == (name != "vit, raw, ImageNet pixels")


def test_a_raw_vit_gives_the_projected_class_token():
    from progeo.models.backbones.clips import load_clip

    images = torch.rand(2, 3, 128, 128)
    expected = load_clip("tiny-vit", "random").encode_image(images)
    torch.testing.assert_close(build_encoder("tiny-vit", "random", normalized=False)(images), expected)


def test_the_resnet_keeps_no_attention_pool_it_does_not_use():
    assert not [name for name in ENCODERS["resnet"]().state_dict() if "attnpool" in name]


def test_frozen_layers_get_no_gradient_and_the_others_do():
    encoder = ENCODERS["vit"]()
    freeze_layers(encoder.backbone, ["conv1", "ln_pre", "transformer.resblocks.0"])
    encoder(torch.rand(2, 3, 64, 96)).sum().backward()
    without = {name for name, p in encoder.backbone.named_parameters() if p.grad is None}
    assert without == {
        name
        for name, _ in encoder.backbone.named_parameters()
        if name.startswith(("conv1.", "ln_pre.", "transformer.resblocks.0."))
    }


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"tiny-vit with token have 128 dimensions, `descriptor_dim` cannot be 64"):
        build_encoder("tiny-vit", "random", descriptor_dim=64)
    with pytest.raises(ValueError, match=r"`normalization` must be one of clip, imagenet, got 'none'"):
        build_encoder("tiny-vit", "random", normalization="none")
    with pytest.raises(ValueError, match="`image_size` must be at least 32 pixels a side, got 16 x 16"):
        build_encoder("tiny-vit", "random", 16)
    with pytest.raises(ValueError, match=r"`frozen` has 'layer9', which is no layer .* conv1"):
        freeze_layers(ENCODERS["resnet"]().backbone, ["layer9"])
    with pytest.raises(ValueError, match="Images must be at least 32 pixels a side, got 20 x 64"):
        ENCODERS["resnet"]()(torch.rand(1, 3, 20, 64))
    with pytest.raises(ValueError, match="uint8 tensor"):
        ENCODERS["resnet"]().preprocess(torch.rand(3, 64, 64))


def test_a_spec_whose_backbone_lacks_a_part_is_refused():
    spec = replace(built("resnet18").spec, aggregation="token", aggregation_options={})
    with pytest.raises(ValueError, match="`aggregation` token needs a token, and resnet18 gives a feature map only"):
        empty_encoder(spec)


def test_only_the_thumbnail_has_no_weights(encoder):
    assert encoder.has_weights == bool(encoder.state_dict())
    assert isinstance(encoder, Encoder)


def test_weights_that_do_not_fit_are_refused_by_name():
    encoder = ENCODERS["resnet"]()
    state = encoder.state_dict()
    with pytest.raises(ValueError, match=r"aggregation.p should be \(1,\), is missing"):
        restore_encoder(encoder.spec, {name: tensor for name, tensor in state.items() if name != "aggregation.p"})
    with pytest.raises(ValueError, match=r"extra should be absent, is \(2,\)"):
        restore_encoder(encoder.spec, {**state, "extra": torch.zeros(2)})


def test_a_spec_of_an_earlier_version_gets_defaults_and_an_unknown_field_is_refused():
    spec = replace(ENCODERS["vit"]().spec, normalized=False)
    written = json.loads(json.dumps(spec_to_json(spec)))
    assert spec_from_json(written) == spec
    needed = ("family", "architecture", "image_size", "descriptor_dim", "mean", "std", "aggregation")
    few = {name: written[name] for name in needed}
    assert spec_from_json(few) == replace(spec, normalized=True, configuration=None)
    with pytest.raises(ValueError, match=r"^unknown 'color', 'shape'; its fields are family, architecture, "):
        spec_from_json({**few, "shape": 1, "color": 2})
    with pytest.raises(ValueError, match=r"^missing the field image_size"):
        spec_from_json({name: value for name, value in few.items() if name not in ("std", "image_size")})


def test_attention_pooling_gives_the_features_of_open_clip():
    clip = load_clip("tiny-resnet", "random")
    images = torch.rand(2, 3, *as_height_width(clip.visual.image_size))
    encoder = build_encoder("tiny-resnet", "random", aggregation="token", normalized=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), clip.encode_image(images), rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_map_is_what_torchvisions_classifier_sees():
    encoder = built("mean, of torchvision")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled = encoder.backbone(images).mean(dim=(2, 3))
        assert encoder(images).shape == (2, 512)
        torch.testing.assert_close(encoder(images), pooled / pooled.norm(dim=1, keepdim=True))


def test_regions_are_projected_as_descriptors_are():
    options = {"aggregation": "netvlad", "aggregation_options": {"num_clusters": 3}}
    encoder = build_encoder("tiny-resnet", "random", 96, **options).eval()
    encoder = projected(encoder, torch.rand(5, encoder.descriptor_dim), torch.rand(5)).eval()
    with torch.no_grad():
        descriptors, features = encoder(torch.rand(2, 3, 96, 96), with_features=True)
        regions = encoder.regions(features)
    assert regions.shape == (2, 7, 5)
    torch.testing.assert_close(regions[:, 0], descriptors)


def test_a_projection_maps_descriptors_and_makes_them_as_long_as_before():
    encoder, weight, bias = build_encoder("tiny-vit", "random").eval(), torch.rand(16, 128), torch.rand(16)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        moved = encoder(images) @ weight.T + bias
        found = projected(encoder, weight, bias)(images)
        torch.testing.assert_close(found, moved / moved.norm(dim=1, keepdim=True))
        raw = projected(build_encoder("tiny-vit", "random", normalized=False), weight, bias)
        assert not torch.allclose(raw(images).norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="projected already, from 128 to 16"):
        projected(built("projected"), weight, bias)


def test_only_what_clip_pooled_can_be_compared_with_texts(tmp_path):
    weights = str(tmp_path / "clip.pt")
    torch.save(load_clip("tiny-resnet", "random").state_dict(), weights)
    assert build_encoder("tiny-resnet", weights, aggregation="token").spec.text_weights == weights
    assert build_encoder("tiny-resnet", weights).spec.text_weights is None
    assert build_encoder("tiny-vit", "random").spec.text_weights is None


@pytest.mark.parametrize(
    ("aggregation", "options", "sentence"),
    [
        ("token", {}, "token needs a token, and resnet18 gives a feature map only. Use .*gem or .*mean or mean_linear"),
        (
            "ours",
            {},
            "`aggregation` 'ours' is not known: use .*gem, .*mean, mean_linear, .*netvlad, .*, or name .* `plugin`",
        ),
        ("mean", {"power": 3}, "`aggregation_options` has 'power', which is no option of mean: it has none"),
        (
            "gem",
            {"power": 3},
            "`aggregation_options` has 'power', which is no option of gem: its options are local_linear",
        ),
    ],
)
def test_an_aggregation_that_cannot_be_is_refused_before_weights_are_fetched(aggregation, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_encoder("resnet18", "nowhere", aggregation=aggregation, aggregation_options=options)


@pytest.mark.parametrize(
    ("architecture", "found"),
    [
        ("resnet18", ("torchvision", "resnet18")),
        ("torchvision/vgg16", ("torchvision", "vgg16")),
        ("RN50", ("open_clip", "RN50")),
        ("ViT-B/16", ("open_clip", "ViT-B/16")),
        ("open_clip/ViT-B/16", ("open_clip", "ViT-B/16")),
    ],
)
def test_the_family_of_an_architecture_is_named_or_found(architecture, found):
    assert find_family(architecture) == found


def test_an_architecture_that_no_family_knows_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`architecture` 'RN5' is not known\. Use for example RN50, .* `plugin`"):
        find_family("RN5")
    with pytest.raises(ValueError, match="`architecture` 'RN50' is not known to torchvision"):
        find_family("torchvision/RN50")


def test_the_map_of_a_vit_has_its_patches_where_they_are_in_the_image():
    encoder = build_encoder("tiny-vit", "random", (64, 96), aggregation="mean").eval()
    clip = load_clip("tiny-vit", "random", (64, 96))
    clip.visual.output_tokens = True
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        _, patches = clip.visual(images)
        _, features = encoder(images, with_features=True)
    assert all(torch.equal(features.map[:, :, row, 5], patches[:, 6 * row + 5]) for row in range(4))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tokens", {"vision_cfg.pool_type": "none"}),
        ("pooled-twice", {"vision_cfg.attentional_pool": "parallel"}),
    ],
)
def test_a_tower_whose_image_features_are_no_vector_has_a_map_only(name, settings, architecture):
    with pytest.raises(ValueError, match=f"`aggregation` token needs a token, and {name} gives a feature map only"):
        build_encoder(architecture(name, settings), "random")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mean-of-tokens", {"vision_cfg.pool_type": "avg", "vision_cfg.no_ln_pre": True}),
        ("own-epsilon", {"vision_cfg.norm_kwargs": {"eps": 1e-3}}),
        ("own-quickgelu", {"quick_gelu": True}),
        ("large-patches", {"vision_cfg.patch_size": 128, "vision_cfg.image_size": 256}),
        ("text-bias", {"text_cfg.proj_bias": True}),
        ("pooled-and-tokens", {"vision_cfg.output_tokens": True}),
    ],
)
def test_a_tower_of_an_unusual_architecture_is_restored_bit_for_bit(name, settings, architecture):
    encoder = build_encoder(architecture(name, settings), "random").eval()
    assert encoder.spec.architecture == name
    again = restore_encoder(spec_from_json(spec_to_json(encoder.spec)), encoder.state_dict())
    images = torch.randn(2, 3, *encoder.image_size)
    assert torch.equal(encoder(images), again(images))


def test_weights_of_another_activation_than_any_architecture_are_given_back_by_their_configuration(
    tmp_path, monkeypatch
):
    """Weights of a tag that needs QuickGELU, of an architecture that open_clip has with GELU only."""
    torch.save(load_clip("tiny-vit", "random").state_dict(), tmp_path / "clip.pt")
    tags = {"quick": {"file": str(tmp_path / "clip.pt"), "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", tags)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny-vit": open_clip.get_model_config("tiny-vit")})
    encoder, images = build_encoder("tiny-vit", "quick").eval(), torch.randn(2, 3, 128, 128)
    assert encoder.spec.architecture == "tiny-vit"
    again = restore_encoder(spec_from_json(spec_to_json(encoder.spec)), encoder.state_dict())
    assert encoder(images).equal(again(images))
    assert any(isinstance(module, QuickGELU) for module in again.modules())


def test_a_missing_interpolation_is_that_of_the_architecture():
    for architecture, interpolation in (("vit_small_patch14_dinov2", "dinov2"), ("vit_tiny_patch16_224", "edges")):
        fields = {"family": "timm", "architecture": architecture, "image_size": [70, 70], "descriptor_dim": 384}
        spec = spec_from_json(fields | {"mean": [0, 0, 0], "std": [1, 1, 1], "aggregation": "token"})
        assert spec.interpolation == interpolation


def test_no_image_goes_through_an_encoder_while_it_is_built():
    encoder = build_encoder("efficientnet_b0", "random", 224, aggregation="mean_linear")
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 49 and encoder.descriptor_dim == 1280
    assert all(norm.num_batches_tracked == 0 and not norm.running_mean.any() for norm in norms)
    assert all((norm.running_var == 1).all() for norm in norms)


@pytest.mark.parametrize("architecture", ["small-fastvit", pytest.param("timm/repvgg_a0", marks=pytest.mark.slow)])
def test_a_strided_convolution_of_the_pixels_alone_is_trained_with_channels_first(architecture):
    """With channels last, PyTorch writes beyond its memory on a CPU, and this process would end."""
    register_small_towers()
    encoder = build_encoder(architecture, "random", 64).train()
    assert all(weight.is_contiguous() for weight in encoder.parameters())
    encoder(torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters() if weight.grad is not None)
    restored = restore_encoder(encoder.spec, encoder.state_dict())
    assert all(weight.is_contiguous() for weight in restored.parameters())
