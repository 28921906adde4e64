"""SALAD, CliqueMining and MegaLoc, imported from what they save."""

import math

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from plain_dinov2 import SIZES, Dinov2
from safetensors.torch import save_file
from torch import nn

import progeo
from progeo.cli import main
from progeo.export.onnx import save_onnx
from progeo.export.program import save_program


class Salad(nn.Module):
    """The published aggregation: Sinkhorn's algorithm on all rows, of which the last is the dustbin."""

    def __init__(self, channels, clusters, cluster_dim, token_dim=256):
        super().__init__()

        def perceptron(layer, out, *dropout):
            return nn.Sequential(layer(channels, 512), *dropout, nn.ReLU(), layer(512, out))

        def convolution(inputs, outputs):
            return nn.Conv2d(inputs, outputs, 1)

        self.token_features = perceptron(nn.Linear, token_dim)
        self.cluster_features = perceptron(convolution, cluster_dim, nn.Dropout(0.3))
        self.score = perceptron(convolution, clusters, nn.Dropout(0.3))
        self.dust_bin = nn.Parameter(torch.tensor(1.7))

    def forward(self, feature_map, token):
        reduced, scores = self.cluster_features(feature_map).flatten(2), self.score(feature_map).flatten(2)
        batch, clusters, count = scores.shape
        scores = torch.cat([scores, self.dust_bin.expand(batch, 1, count)], dim=1)
        norm = -math.log(clusters + count)
        masses = torch.tensor([norm] * clusters + [norm + math.log(count - clusters)])
        columns = torch.zeros(batch, count)
        for _ in range(3):
            rows = masses - (scores + columns[:, None]).logsumexp(dim=2)
            columns = norm - (scores + rows[:, :, None]).logsumexp(dim=1)
        assigned = (scores + rows[:, :, None] + columns[:, None] - norm).exp()[:, :-1]
        sums = (reduced[:, :, None] * assigned[:, None]).sum(dim=3)
        return F.normalize(torch.cat([F.normalize(self.token_features(token)), F.normalize(sums).flatten(1)], dim=1))


class Published(nn.Module):
    """The module that SALAD and MegaLoc save; `model` is True where the backbone is inside of another module.

    Args:
        dim: of the linear layer of MegaLoc; None without one.
    """

    def __init__(self, size, *, clusters=64, cluster_dim=128, dim=None, model=True):
        super().__init__()
        dinov2, salad = Dinov2(size), Salad(SIZES[size][0], clusters, cluster_dim)
        self.backbone = nn.ModuleDict({"model": dinov2}) if model else dinov2
        linear = None if dim is None else nn.Linear(clusters * cluster_dim + 256, dim)
        self.aggregator = salad if linear is None else nn.ModuleDict({"agg": salad, "linear": linear})
        self.parts = (dinov2, salad, linear)
        self.eval()

    @torch.no_grad()
    def forward(self, images):
        dinov2, salad, linear = self.parts
        rows, columns = (side // 14 for side in images.shape[2:])
        tokens = dinov2.norm(nn.Sequential(*dinov2.blocks)(dinov2.first_tokens(images)))
        descriptors = salad(tokens[:, 1:].mT.unflatten(2, (rows, columns)), tokens[:, 0])
        return descriptors if linear is None else F.normalize(linear(descriptors))


def imported(content, tmp_path, *options):
    path = tmp_path / ("model.safetensors" if "state_dict" not in content else "last.ckpt")
    (torch.save if path.suffix == ".ckpt" else save_file)(content, path)
    main(["import", str(path), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@torch.no_grad()
def check(encoder, expected, *sizes):
    for size in sizes:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(encoder(images), expected(images), rtol=0, atol=1e-5)


def facts(encoder):
    spec = encoder.spec
    return spec.architecture, spec.image_size, spec.pooled_dim, spec.descriptor_dim, spec.mean[0], spec.resize


@pytest.fixture(scope="module")
def salad():
    torch.manual_seed(0)
    return Published("small")


def test_salad_gives_the_published_descriptors_at_every_size_from_a_checkpoint_of_lightning(salad, tmp_path, capsys):
    arguments = {"backbone_arch": "dinov2_vits14", "backbone_config": {"norm_layer": True}, "lr": 6e-5}
    checkpoint = {"state_dict": salad.state_dict(), "epoch": 3, "hyper_parameters": arguments}
    encoder = imported(checkpoint, tmp_path)
    check(encoder, salad, (224, 224), (126, 168))
    assert facts(encoder) == ("vit_small_patch14_dinov2", (322, 322), None, 64 * 128 + 256, 0.485, "bilinear")
    sizes = {"num_clusters": 64, "cluster_dim": 128, "token_dim": 256, "hidden_dim": 512, "dropout": 0.3}
    assert encoder.spec.aggregation_options == sizes
    log = capsys.readouterr().err
    assert "SALAD or CliqueMining: vit_small_patch14_dinov2, 322 x 322 pixels of mean (0.485, 0.456, 0.406)" in log
    assert "aggregator.dust_bin, the score of SALAD's dustbin, does not change descriptors." in log
    assert "need them: epoch, hyper_parameters, backbone.model.mask_token, aggregator.dust_bin\n" in log


@pytest.mark.parametrize("model", [pytest.param(True, marks=pytest.mark.slow), False])
def test_megaloc_gives_the_published_descriptors_from_files_of_each_release(model, salad, tmp_path):
    megaloc = Published("small", clusters=8, cluster_dim=16, dim=40, model=model)
    megaloc.parts[0].load_state_dict(salad.parts[0].state_dict())
    state = megaloc.state_dict()
    if not model:
        del state["backbone.mask_token"]
    encoder = imported(state, tmp_path, "--image_size", "[84,112]")
    check(encoder, megaloc, (84, 112), (98, 56))
    assert facts(encoder)[:4] == ("vit_small_patch14_dinov2", (84, 112), 8 * 16 + 256, 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"cluster_dim": 256, "dim": 8448}, {"cluster_dim": 256, "dim": 8448, "model": False}]
)
def test_the_published_sizes_give_the_published_descriptors(options, tmp_path):
    published = Published("base", **options)
    encoder = imported(published.state_dict(), tmp_path)
    assert encoder.descriptor_dim == 8448
    check(encoder, published, (224, 224), (322, 322), (518, 518), (322, 238))


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda state: state.pop("aggregator.score.3.weight"), [], r"aggregator\.score\.3\.weight is missing"),
        (
            lambda state: state.pop("aggregator.score.3.bias"),
            [],
            r"aggregator\.score\.3\.bias should be \(64,\), is mis",
        ),
        (
            lambda state: state.pop("backbone.model.norm.bias"),
            [],
            r"backbone\.norm\.bias should be \(384,\), is missing",
        ),
        (lambda state: state.update({"aggregator.p": torch.ones(1)}), [], r"aggregator\.p should be absent"),
        (
            lambda state: None,
            ["--image_size", "320"],
            "--image_size must be at least 32 pixels a side, in multiples of 14",
        ),
        (lambda state: None, ["--image_size", "112"], "--image_size must be at least 126 pixels a side"),
        (lambda state: None, ["--normalized", "false"], "vit_small_patch14_dinov2 are always L2-normalized, omit it"),
    ],
)
def test_files_that_are_not_salads_are_refused_in_a_sentence(change, options, sentence, salad, tmp_path):
    state = salad.state_dict()
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported({"state_dict": state}, tmp_path, *options)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    "arguments",
    [{"return_token": True}, pytest.param({"norm_layer": False}, marks=pytest.mark.slow)],  # False by default there
)
def test_a_checkpoint_without_the_last_norm_is_imported_without_it(arguments, salad, tmp_path):
    checkpoint = {"state_dict": salad.state_dict(), "hyper_parameters": {"backbone_config": arguments}}
    encoder = imported(checkpoint, tmp_path)
    assert encoder.spec.architecture == "vit_small_patch14_dinov2_prenorm"
    images = torch.randn(1, 3, 126, 168)
    dinov2, head, _ = salad.parts
    with torch.no_grad():
        tokens = nn.Sequential(*dinov2.blocks)(dinov2.first_tokens(images))
        expected = head(tokens[:, 1:].mT.unflatten(2, (9, 12)), tokens[:, 0])
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_program, save_onnx])
def test_an_imported_megaloc_is_exported_for_every_size_with_more_cells_than_clusters(save, tmp_path):
    megaloc = Published("small", cluster_dim=16, dim=40)
    encoder = imported(megaloc.state_dict(), tmp_path, "--image_size", "[126,140]")
    save(tmp_path / "graph", encoder)
    images = torch.randn(2, 3, 168, 126)
    if save is save_onnx:
        (found,) = onnxruntime.InferenceSession(tmp_path / "graph").run(None, {"images": images.numpy()})
    else:
        found = torch.export.load(tmp_path / "graph").module()(images).detach()
    torch.testing.assert_close(torch.as_tensor(found), megaloc(images), rtol=0, atol=1e-4)
