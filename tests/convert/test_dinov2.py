"""DINOv2, imported from what its authors publish, and its names in the files of other programs."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from plain_dinov2 import SIZES, Dinov2

import progeo
from progeo.cli import main
from progeo.convert.dinov2 import find_dinov2
from progeo.models.backbones.meta_run import on_meta
from progeo.models.weight_files.checkpoints import FoundWeights


def imported(state, tmp_path, *options):
    torch.save(state, tmp_path / "dinov2_pretrain.pth")
    main(["import", str(tmp_path / "dinov2_pretrain.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@torch.no_grad()
def check(encoder, model, *sizes, normalized=True):
    for size in sizes:
        images = torch.randn(1, 3, *size)
        token = model.norm(torch.nn.Sequential(*model.blocks)(model.first_tokens(images)))[:, 0]
        torch.testing.assert_close(encoder(images), F.normalize(token) if normalized else token, rtol=0, atol=1e-4)


def test_dinov2_gives_its_class_token_at_every_size(tmp_path, capsys):
    model = Dinov2("small")
    encoder = imported(model.state_dict(), tmp_path)
    check(encoder, model, (70, 98), (98, 84))
    spec = encoder.spec
    assert (spec.architecture, spec.image_size, spec.descriptor_dim) == ("vit_small_patch14_dinov2", (518, 518), 384)
    assert spec.configuration == {"positions_size": [518, 518]}
    log = capsys.readouterr().err
    assert "DINOv2: vit_small_patch14_dinov2, 518 x 518 pixels of mean (0.485, 0.456, 0.406)" in log
    assert "the encoder does not need them: mask_token\n" in log


class WithRegisters(Dinov2):
    """Its code resizes the position embedding with antialiasing, and without an offset."""

    def positions(self, rows, columns):
        cells = self.pos_embed[:, 1:].mT.unflatten(2, (16, 16))
        cells = F.interpolate(cells, (rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], cells.flatten(2).mT], dim=1)


def test_dinov2_with_registers_and_chunks_of_blocks_keeps_the_grid_of_its_positions(tmp_path):
    model = WithRegisters("small", registers=4, grid=16)
    state = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): value for name, value in model.state_dict().items()}
    encoder = imported(state, tmp_path, "--image_size", "84", "--normalized", "false")
    check(encoder, model, (84, 84), (70, 98), normalized=False)
    assert encoder.spec.architecture == "vit_small_patch14_reg4_dinov2"
    assert encoder.spec.configuration == {"positions_size": [224, 224]}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_larger_ones_give_their_class_token(size, tmp_path):
    model = Dinov2(size)
    encoder = imported(model.state_dict(), tmp_path)
    assert encoder.descriptor_dim == SIZES[size][0]
    check(encoder, model, (224, 224), (322, 322), (518, 518), (322, 238))


def test_the_layers_of_the_giant_get_the_names_of_timm():
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.w12", "mlp.w3")
    block = [*(f"{layer}.{part}" for layer in layers for part in ("weight", "bias")), "ls1.gamma", "ls2.gamma"]
    theirs = {f"blocks.{number}.{name}": torch.zeros(1) for number in range(40) for name in block}
    theirs |= {"cls_token": torch.zeros(1, 1, 1536), "pos_embed": torch.zeros(1, 1 + 16 * 16, 1536)}
    state = {f"encoder.{name}": value for name, value in theirs.items()} | {"head.weight": torch.zeros(1)}
    found = find_dinov2(FoundWeights(state, (), ()), "encoder.", 224)
    assert found.architecture == "vit_giant_patch14_dinov2"
    names = {name.replace("w12", "fc1").replace("w3", "fc2") for name in theirs}
    assert found.found.state.keys() == {"head.weight", *(f"backbone.{name}" for name in names)}
    with on_meta():
        network = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, depth=1)
    assert {name for name in network.state_dict() if name.startswith("blocks.")} == {
        name for name in names if name.startswith("blocks.0.")
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"cls_token": torch.zeros(1, 1, 400)},
            r"A ViT of 400 channels and 12 blocks is no DINOv2: .* small \(384 chan",
        ),
        (
            {"pos_embed": torch.zeros(1, 8, 384)},
            r"x\.pos_embed should be of a class token and a square, is \(1, 8, 384\)",
        ),
        ({"cls_token": torch.zeros(0)}, r"cls_token should be a 3-d tensor with values, is \(0,\)"),
        ({"register_tokens": torch.zeros(1, 5, 384)}, r"'vit_small_patch14_reg5_dinov2' is not known to timm"),
    ],
)
def test_what_is_no_dinov2_is_refused_in_a_sentence(change, sentence):
    names = {f"blocks.{number}.ls1.gamma": torch.zeros(1) for number in range(12)}
    whole = {"cls_token": torch.zeros(1, 1, 384), "pos_embed": torch.zeros(1, 10, 384), **names, **change}
    state = {f"x.{name}": value for name, value in whole.items()}
    with pytest.raises(ValueError, match=sentence):
        find_dinov2(FoundWeights(state, (), ()), "x.", 224)
