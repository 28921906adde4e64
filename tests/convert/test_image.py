"""ImAge, imported from what it saves."""

import pytest
import torch
import torch.nn.functional as F
from plain_dinov2 import Dinov2
from torch import nn

import progeo
from progeo.cli import main


class ImAge(nn.Module):
    """The published module: learned tokens are put before all others where a block takes them."""

    def __init__(self, size, registers=4, count=8):
        super().__init__()
        self.backbone = Dinov2(size, registers)
        self.learnable_aggregation_tokens = nn.Parameter(torch.randn(1, count, len(self.backbone.norm.weight)))

    def forward(self, images):
        tokens = self.backbone.first_tokens(images)
        for number, block in enumerate(self.backbone.blocks):
            if number == 8:
                tokens = torch.cat([self.learnable_aggregation_tokens.expand(len(images), -1, -1), tokens], dim=1)
            tokens = block(tokens)
        count = self.learnable_aggregation_tokens.shape[1]
        return F.normalize(self.backbone.norm(tokens)[:, :count].flatten(1), dim=1)


def saved(state, tmp_path):
    """Save a checkpoint of training, or what the hub releases, which holds the same."""
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch_num": 3, "model_state_dict": state, "best_r1_r5": 180.5}, tmp_path / "ImAge.pth")
    return tmp_path / "ImAge.pth"


def imported(state, tmp_path, *options):
    main(["import", str(saved(state, tmp_path)), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return ImAge("small")


@torch.no_grad()
def check(encoder, model, *sizes):
    for size in sizes:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(encoder(images), model(images), rtol=0, atol=1e-5)


def test_image_gives_the_published_descriptors_at_any_size(small, tmp_path, capsys):
    encoder = imported(small.state_dict(), tmp_path)
    check(encoder, small, (224, 224), (98, 70))
    spec = encoder.spec
    assert (spec.family, spec.architecture) == ("aggregation_tokens", "vit_small_patch14_reg4_dinov2+8@8")
    assert (spec.image_size, spec.descriptor_dim, spec.resize) == ((322, 322), 8 * 384, "bilinear")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    log = capsys.readouterr().err
    assert "the block that the tokens are inserted before: 8 is taken, as published" in log
    assert "does not need them: epoch_num, best_r1_r5, backbone.mask_token\n" in log


@pytest.mark.slow
@pytest.mark.parametrize(("registers", "count"), [(4, 8), (0, 3)])
def test_the_published_size_gives_the_published_descriptors(registers, count, tmp_path):
    model = ImAge("base", registers, count)
    encoder = imported(model.state_dict(), tmp_path)
    assert encoder.descriptor_dim == count * 768
    check(encoder, model, (224, 224), (322, 322), (518, 518), (322, 238))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("backbone.norm.bias"), r"backbone\.norm\.bias should be \(384,\), is missing"),
        (lambda state: state.update({"fc.weight": torch.ones(2)}), r"fc\.weight should be absent, is \(2,\)"),
        (
            lambda state: state.update({"learnable_aggregation_tokens": torch.ones(1, 100, 384)}),
            r"has no architecture 'vit_small_patch14_reg4_dinov2\+100@8'",
        ),
    ],
)
def test_other_weights_are_refused(change, sentence, small, tmp_path):
    state = dict(small.state_dict())
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path)
    assert not (tmp_path / "encoder").exists()
