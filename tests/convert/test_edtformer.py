"""EDTformer, imported from what it saves."""

import pytest
import torch
import torch.nn.functional as F
from plain_dinov2 import SIZES, Dinov2
from torch import nn

import progeo
from progeo.cli import main


class SimplifiedBlock(nn.Module):
    """A decoder layer without perceptron, called as `nn.TransformerDecoder` calls its layers."""

    def __init__(self, channels):
        super().__init__()
        self.self_attn, self.multihead_attn = (nn.MultiheadAttention(channels, 16, batch_first=True) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, queries, features, **_):
        queries = self.norm1(queries + self.self_attn(queries, queries, queries)[0])
        return self.norm2(queries + self.multihead_attn(queries, features, features)[0])


class EDTformer(nn.Module):
    """The published module."""

    def __init__(self, size, *, count=64, channels=256, rows=16):
        super().__init__()
        width, depth = SIZES[size]
        self.backbone = Dinov2(size)
        self.backbone.adapters = nn.ModuleList(
            nn.ModuleDict({"D_fc1": nn.Linear(width, 4), "D_fc2": nn.Linear(4, width)}) for _ in range(depth)
        )
        self.fc = nn.Linear(width, width)
        self.decoder = nn.TransformerDecoder(SimplifiedBlock(width), num_layers=2)
        for parameter in self.decoder.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.queries = nn.Parameter(torch.randn(1, count, width))
        self.channel_proj, self.row_proj = nn.Linear(width, channels), nn.Linear(count, rows)

    def forward(self, images):
        tokens = refined = self.backbone.first_tokens(images)
        for block, adapter in zip(self.backbone.blocks, self.backbone.adapters, strict=True):
            tokens = block(tokens)
            change = adapter["D_fc2"](F.gelu(adapter["D_fc1"](refined + tokens)))
            refined = refined + tokens + 0.5 * change
        features = self.fc(self.backbone.norm(refined))
        answers = self.decoder(self.queries.expand(len(images), -1, -1), features)
        return F.normalize(self.row_proj(self.channel_proj(answers).permute(0, 2, 1)).flatten(1), dim=1)


def imported(state, tmp_path, *options):
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch_num": 3, "model_state_dict": state}, tmp_path / "EDTformer.pth")
    main(["import", str(tmp_path / "EDTformer.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@torch.no_grad()
def check(encoder, model, *sizes):
    for size in sizes:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(encoder(images), model(images), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return EDTformer("small", count=5, channels=6, rows=3)


def test_edtformer_gives_the_published_descriptors_at_any_size(small, tmp_path, capsys):
    encoder = imported(small.state_dict(), tmp_path)
    check(encoder, small, (224, 224), (98, 70))
    spec = encoder.spec
    assert (spec.family, spec.architecture) == ("lopa", "vit_small_patch14_dinov2")
    assert (spec.image_size, spec.descriptor_dim, spec.aggregation) == ((322, 322), 18, "edtformer")
    assert spec.aggregation_options["num_layers"] == 2
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    log = capsys.readouterr().err
    assert "EDTformer: vit_small_patch14_dinov2, 322 x 322 pixels" in log
    assert "does not need them: epoch_num, backbone.mask_token\n" in log


@pytest.mark.slow
def test_the_published_size_gives_the_published_descriptors(tmp_path):
    model = EDTformer("base")
    encoder = imported(model.state_dict(), tmp_path)
    assert encoder.descriptor_dim == 4096
    check(encoder, model, (224, 224), (322, 322), (518, 518), (322, 238))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("backbone.adapters.3.D_fc2.bias"), r"adapters\.3\.D_fc2\.bias should be \(384,\), is"),
        (lambda state: state.pop("decoder.layers.1.norm2.bias"), r"decoder\.layers\.1\.norm2\.bias should be \(384,\)"),
        (lambda state: state.pop("row_proj.weight"), r"not complete: row_proj\.weight is missing"),
        (lambda state: state.update({"fc.scale": torch.ones(2)}), r"fc\.scale should be absent, is \(2,\)"),
    ],
)
def test_other_weights_are_refused(change, sentence, small, tmp_path):
    state = dict(small.state_dict())
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path)
    assert not (tmp_path / "encoder").exists()
