"""SelaVPR++, imported from what it saves."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain_dinov2 import SIZES, Dinov2
from published_convnets import GeM, shaken
from torch import nn

import progeo
from progeo.cli import main

DIMS = {"small": 24, "base": 2048, "large": 4096}
BITS = ("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")


def convolution(in_channels, out_channels, side):
    layers = {"conv": nn.Conv2d(in_channels, out_channels, side, padding=side // 2)}
    return nn.ModuleDict({**layers, "bn": nn.BatchNorm2d(out_channels, eps=0.001)})


class MulConvAdapter(nn.Module):
    """The adapter for square images, whose class token is added to itself where patches get their convolutions."""

    def __init__(self, channels, hidden, one, three_in, three, five_in, five):
        super().__init__()
        self.branch1 = convolution(hidden, one, 1)
        self.branch2 = nn.ModuleList([convolution(hidden, three_in, 1), convolution(three_in, three, 3)])
        self.branch3 = nn.ModuleList([convolution(hidden, five_in, 1), convolution(five_in, five, 5)])
        self.D_fc1, self.D_fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, tokens):
        hidden = self.D_fc1(tokens).relu()
        side = math.isqrt(hidden.shape[1] - 1)
        cells = hidden[:, 1:].reshape(len(hidden), side, side, -1).permute(0, 3, 1, 2)
        maps = []
        for branch in ([self.branch1], self.branch2, self.branch3):
            found = cells
            for layer in branch:
                found = layer["bn"](layer["conv"](found)).relu()
            maps.append(found)
        mixed = torch.cat(maps, dim=1).flatten(2).permute(0, 2, 1)
        return self.D_fc2(torch.cat([hidden[:, :1], mixed], dim=1) + hidden)


class SelaVPR(nn.Module):
    """The published module with the branch of floating-point descriptors, that of bits, or both."""

    def __init__(self, size, *, floats=True, bits=False):
        super().__init__()
        channels, depth = SIZES[size]
        self.backbone = Dinov2(size)
        parts = (channels // 2, channels // 4, channels // 32, channels // 8, channels // 32, channels // 8)
        for wanted, adapters, head, first, last, dim in (
            (floats, "adapters", "aggregation", "linear1", "linear2", DIMS[size]),
            (bits, "adapters_hashing", "aggregation_hashing", "linear3", "linear4", 512),
        ):
            if wanted:
                count = {12: 12, 24: 16}[depth]
                setattr(self.backbone, adapters, nn.ModuleList(MulConvAdapter(channels, *parts) for _ in range(count)))
                setattr(self, head, nn.Sequential(nn.Identity(), GeM(), nn.Flatten()))
                setattr(self, first, nn.Linear(channels, channels))
                setattr(self, last, nn.Linear(channels, dim))

    def forward(self, images):
        tokens = self.backbone.first_tokens(images)
        start = len(self.backbone.blocks) - len(self.backbone.adapters)
        refined = tokens
        for number, block in enumerate(self.backbone.blocks):
            tokens = block(tokens)
            change = 0 if number < start else self.backbone.adapters[number - start](refined + tokens)
            refined = tokens if number < start else refined + change
        patches = self.linear1(self.backbone.norm(refined)[:, 1:])
        power = self.aggregation[1].p
        pooled = F.normalize(patches, dim=2).clamp(min=1e-6).pow(power).mean(dim=1).pow(1 / power)
        return F.normalize(self.linear2(pooled), dim=1)


def imported(state, tmp_path, *options):
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch_num": 3, "model_state_dict": state}, tmp_path / "SelaVPRplusplus.pth")
    main(["import", str(tmp_path / "SelaVPRplusplus.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@torch.no_grad()
def check(encoder, model, *sides):
    for side in sides:
        images = torch.randn(1, 3, side, side)
        torch.testing.assert_close(encoder(images), model(images), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return shaken(SelaVPR("small", bits=True)).eval()


def test_the_floating_point_branch_gives_the_published_descriptors(small, tmp_path, capsys):
    encoder = imported(small.state_dict(), tmp_path)
    check(encoder, small, 224)
    spec = encoder.spec
    assert (spec.family, spec.architecture) == ("multiconv_adapters", "vit_small_patch14_dinov2")
    assert (spec.image_size, spec.descriptor_dim, spec.aggregation) == ((322, 322), 24, "gem")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    log = capsys.readouterr().err
    assert "SelaVPR++: vit_small_patch14_dinov2, 322 x 322 pixels" in log
    assert "aggregation_hashing.1.p, linear3.* (2), linear4.* (2), backbone.adapters_hashing.* (468)\n" in log
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 98, 70)).shape == (2, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "bits"), [("base", False), ("large", True)])
def test_the_published_sizes_give_the_published_descriptors(size, bits, tmp_path):
    model = shaken(SelaVPR(size, bits=bits)).eval()
    encoder = imported(model.state_dict(), tmp_path)
    check(encoder, model, 224, 322, 518)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda state: [state.pop(name) for name in list(state) if not name.startswith(BITS) and "adapter" in name],
            "are bits only: import one with floating-point descriptors",
        ),
        (
            lambda state: [state.pop(f"linear2.{name}") for name in ("weight", "bias")],
            "is not GeM: import one trained with --aggregation gem",
        ),
        (
            lambda state: state.pop("backbone.adapters.11.branch3.1.bn.running_var"),
            r"backbone\.adapters\.11\.branch3\.1\.bn\.running_var should be \(48,\), is missing",
        ),
        (lambda state: state.update({"linear5.weight": torch.ones(2)}), r"linear5\.weight should be absent, is \(2,\)"),
    ],
)
def test_other_weights_are_refused(change, sentence, small, tmp_path):
    state = dict(small.state_dict())
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path)
    assert not (tmp_path / "encoder").exists()
