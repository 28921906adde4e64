import dataclasses
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.export.passes import move_to_device_pass

from progeo.export.onnx import save_onnx
from progeo.export.program import check_difference, save_program
from progeo.models.encoder import build_encoder, projected

SIZES = ((1, 224, 224), (5, 224, 224), (1, 320, 448), (5, 320, 448))


def largest_difference(encoder, sizes, *exported):
    """The largest difference of each function to the encoder, for normalized images of several sizes."""
    generator = torch.Generator().manual_seed(1)
    largest = [0.0] * len(exported)
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = encoder(images)
            found = [torch.as_tensor(function(images)) for function in exported]
        assert all(descriptors.shape == expected.shape for descriptors in found)
        differences = [(descriptors - expected).abs().max().item() for descriptors in found]
        largest = [max(pair) for pair in zip(largest, differences, strict=True)]
    return largest


def in_onnxruntime(path):
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(["descriptors"], {"images": images.numpy()})[0]


def random_projection(encoder):
    generator = torch.Generator().manual_seed(0)
    dim = encoder.descriptor_dim
    return projected(encoder, torch.randn(16, dim, generator=generator), torch.randn(16, generator=generator))


def shortened(vit):
    """Leave a ViT its first layer: graphs of all layers take longer to make and are alike."""
    vit.backbone.transformer.resblocks = vit.backbone.transformer.resblocks[:1]
    return vit.eval()


def short_vit(image_size, aggregation="token", **how):
    return shortened(build_encoder("tiny-vit", "random", image_size, aggregation=aggregation, **how))


@pytest.fixture(scope="module", params=["bicubic", pytest.param("bilinear", marks=pytest.mark.slow)])
def photos_program(request, tmp_path_factory):
    """An encoder, and the file of its program that takes photos."""
    encoder, path = short_vit((64, 96), resize=request.param), tmp_path_factory.mktemp("photos") / "model.pt2"
    save_program(path, encoder, input="photos")
    return encoder, path


@pytest.mark.slow
def test_onnx_equals_the_encoder_of_a_vit_with_a_projection_for_batches_of_any_size(tmp_path):
    encoder = shortened(random_projection(build_encoder("tiny-vit", "random", (64, 96))))
    encoder.spec = dataclasses.replace(encoder.spec, text_weights="/home/me/clip.pt")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert save_onnx(tmp_path / "model.onnx", encoder) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    sizes = (*SIZES, (2, 64, 96), (3, 224, 96))
    assert largest_difference(encoder, sizes, in_onnxruntime(tmp_path / "model.onnx")) < [1e-4]
    model = onnx.load(tmp_path / "model.onnx")
    (images,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", 3, "height", "width"])
    assert '"architecture": "tiny-vit"' in model.metadata_props[0].value
    assert b"/home" not in (tmp_path / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_program_of_pytorch_resizes_photos_inside_as_preprocess_does(photos_program):
    encoder, path = photos_program
    exported = torch.export.load(path).module()
    rng = np.random.default_rng(0)
    for height, width in ((480, 640), (64, 96), (70, 333), (1000, 1200), (100, 70)):
        photos = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        if width < 96:  # enlarged, so that bicubic interpolation overshoots between black and white
            photos = photos // 128 * 255
        with torch.no_grad():
            expected = encoder(torch.stack([encoder.preprocess(Image.fromarray(photo)) for photo in photos]))
            found = exported(torch.from_numpy(photos))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # one gray level of one pixel would be more


@pytest.mark.slow
def test_a_program_resizes_positions_as_dinov2_does(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96), interpolation="dinov2", aggregation="gem").eval()
    assert save_program(tmp_path / "model.pt2", encoder) < 1e-5
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert largest_difference(encoder, ((2, 64, 96), (3, 80, 64), (1, 96, 96)), exported) < [1e-5]


class Undecided(torch.nn.Module):
    def forward(self, feature_map):
        return feature_map.mean(dim=(2, 3)) * (2 if feature_map.sum() > 0 else 1)


@pytest.mark.parametrize("save", [pytest.param(save_onnx, marks=pytest.mark.slow), save_program])
def test_a_network_that_no_graph_holds_is_refused_by_name(save, tmp_path):
    encoder = short_vit(64, "mean")
    encoder.aggregation = Undecided()
    with pytest.raises(ValueError, match=r"No graph can be made of tiny-vit: .* `format` safetensors\.$"):
        save(tmp_path / "model", encoder)
    encoder.traits = dataclasses.replace(encoder.traits, only_size=(64, 64))
    with pytest.raises(ValueError, match="tiny-vit, which takes one size only: use `input` photos"):
        save(tmp_path / "model", encoder)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_that_fails_on_images_of_another_size_is_refused_by_name(tmp_path):
    encoder = build_encoder("timm/vit_small_patch16_dinov3", "random", 64).eval()
    encoder.backbone.blocks = encoder.backbone.blocks[:1]
    with pytest.raises(ValueError, match=r"No graph can be made of vit_small_patch16_dinov3: .* `format` safetensors"):
        save_program(tmp_path / "model", encoder)
    assert not list(tmp_path.iterdir())


def test_descriptors_that_differ_are_refused_and_so_are_those_that_are_no_numbers(tmp_path):
    assert check_difference([1e-6, 1e-5], 1e-4, tmp_path) == 1e-5
    with pytest.raises(ValueError, match=r"model.onnx is not written: .* up to 2.0e-04 .* 1e-04 is allowed"):
        check_difference([1e-6, 2e-4], 1e-4, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx is not written: the encoder's descriptors are not finite"):
        check_difference([1e-6, math.nan], 1e-4, tmp_path / "model.onnx")


@pytest.mark.parametrize("save", [pytest.param(save_onnx, marks=pytest.mark.slow), save_program])
@pytest.mark.parametrize("side", [32, 70])
def test_an_encoder_whose_own_size_its_program_would_refuse_is_refused(save, side, tmp_path):
    encoder = build_encoder("tiny-vit", "random", (96, side)).eval()
    with pytest.raises(
        ValueError, match=rf"96 x {side} pixels .* from 64 pixels in multiples of 16\. Use `input` photos"
    ):
        save(tmp_path / "model", encoder)


def check_moved(path, images):
    program = move_to_device_pass(torch.export.load(path), "meta")
    descriptors = program.module()(images.to("meta"))
    assert (descriptors.shape, descriptors.device.type) == ((3, 128), "meta")


def test_a_program_that_takes_photos_can_be_moved_to_another_device(photos_program):
    check_moved(photos_program[1], torch.zeros(3, 200, 150, 3, dtype=torch.uint8))


@pytest.mark.slow
def test_a_program_can_be_moved_to_another_device(tmp_path):
    save_program(tmp_path / "model.pt2", short_vit(64))
    check_moved(tmp_path / "model.pt2", torch.rand(3, 3, 96, 80))


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_onnx, save_program])
def test_a_graph_with_other_descriptors_is_not_written(save, tmp_path):
    encoder = build_encoder("tiny-resnet", "random", 64, aggregation="mean").train()  # batch norm, by the batch
    with pytest.raises(ValueError, match=r"model is not written: .* away from the encoder's, and 1e-04 is allowed"):
        save(tmp_path / "model", encoder)
    assert not list(tmp_path.iterdir())


FULL_SIZE = {
    "tiny ViT as published": (
        lambda: build_encoder("tiny-vit", "random", normalized=False, interpolation="corners"),
        16,
    ),
    "tiny ViT as DINOv2": (lambda: build_encoder("tiny-vit", "random", interpolation="dinov2"), 16),
    "CLIP RN50, gem": (lambda: build_encoder("RN50", "random"), 1),
    "CLIP RN50, clip": (lambda: build_encoder("RN50", "random", aggregation="token"), 32),
    "CLIP RN50, mean, projected": (lambda: random_projection(build_encoder("RN50", "random", aggregation="mean")), 1),
    "CLIP ViT-B/16": (lambda: build_encoder("ViT-B-16", "random"), 16),
    "CLIP ViT-B/32": (lambda: build_encoder("ViT-B-32", "random"), 32),
    "torchvision ResNet-50, gem": (lambda: build_encoder("resnet50", "random", descriptor_dim=512), 1),
    "VGG-16, gem, projected": (lambda: random_projection(build_encoder("vgg16", "random")), 1),
    "EfficientNet-B0, gem": (lambda: build_encoder("efficientnet_b0", "random"), 1),
    "EfficientNet-B0, mean": (lambda: build_encoder("efficientnet_b0", "random", aggregation="mean"), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_onnx_and_the_program_of_every_family_equal_the_encoder(name, tmp_path):
    build, multiple = FULL_SIZE[name]
    encoder = build().eval()
    save_onnx(tmp_path / "model.onnx", encoder)
    save_program(tmp_path / "model.pt2", encoder)
    exported = (in_onnxruntime(tmp_path / "model.onnx"), torch.export.load(tmp_path / "model.pt2").module())
    sizes = (*SIZES, (2, 75, 133)) if multiple == 1 else (*SIZES, (2, 64, 96))
    in_onnx, in_program = largest_difference(encoder, sizes, *exported)
    print(f"{name}: ONNX {in_onnx:.1e}, program {in_program:.1e}")
    assert max(in_onnx, in_program) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("architecture", ["tiny-resnet", "tiny-vit"])
def test_photos_in_onnx_equal_preprocess_and_encoder(architecture, resize, tmp_path):
    encoder = build_encoder(architecture, "random", (96, 64), resize=resize).eval()
    save_onnx(tmp_path / "model.onnx", encoder, input="photos")
    exported = in_onnxruntime(tmp_path / "model.onnx")
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 333, 251, 3), (4, 900, 1200, 3), (5, 320, 448, 3), (2, 96, 64, 3)):
        photos = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            expected = encoder(torch.stack([encoder.preprocess(photo) for photo in photos.permute(0, 3, 1, 2)]))
        assert np.abs(exported(photos) - expected.numpy()).max() < 1e-6  # one gray level of one pixel would be more
