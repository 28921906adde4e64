"""The modules that MixVPR, BoQ and OpenVPRLab save, under the names of their parameters and as they compute them."""

import torch
import torch.nn.functional as F
import torchvision
from plain_dinov2 import SIZES, Dinov2
from published_convnets import shaken
from torch import nn

CHANNELS = {"resnet18": 512, "resnet34": 512}
"""Of the last stage; those of other ResNets are 2048."""


class _Block(nn.Module):
    def __init__(self, channels, num_queries):
        super().__init__()
        heads = channels // 64
        self.encoder = nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, num_queries, channels))
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(channels)
        self.cross_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, tokens):
        tokens, queries = self.encoder(tokens), self.queries.repeat(len(tokens), 1, 1)
        queries = self.norm_q(queries + self.self_attn(queries, queries, queries)[0])
        return tokens, self.norm_out(self.cross_attn(queries, tokens, tokens)[0])


class BoQ(nn.Module):
    def __init__(self, inputs, channels, num_queries, num_layers, rows):
        super().__init__()
        self.proj_c = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm_input = nn.LayerNorm(channels)
        self.boqs = nn.ModuleList(_Block(channels, num_queries) for _ in range(num_layers))
        self.fc = nn.Linear(num_layers * num_queries, rows)

    def forward(self, feature_map):
        tokens, answers = self.norm_input(self.proj_c(feature_map).flatten(2).mT), []
        for block in self.boqs:
            tokens, answer = block(tokens)
            answers.append(answer)
        return F.normalize(self.fc(torch.cat(answers, dim=1).mT).flatten(1))


class _Mixer(nn.Module):
    def __init__(self, cells, hidden):
        super().__init__()
        self.mix = nn.Sequential(nn.LayerNorm(cells), nn.Linear(cells, hidden), nn.ReLU(), nn.Linear(hidden, cells))

    def forward(self, cells):
        return cells + self.mix(cells)


class MixVPR(nn.Module):
    def __init__(self, inputs, cells, outputs, *, depth=4, ratio=1, rows=4, bias=True):
        super().__init__()
        self.mix = nn.Sequential(*(_Mixer(cells, int(cells * ratio)) for _ in range(depth)))
        self.channel_proj = nn.Linear(inputs, outputs)
        self.row_proj = nn.Linear(cells, rows, bias=bias)

    def forward(self, feature_map):
        projected = self.channel_proj(self.mix(feature_map.flatten(2)).mT).mT
        return F.normalize(self.row_proj(projected).flatten(1))


class ConvAP(nn.Module):
    def __init__(self, inputs, outputs, s1=2, s2=2):
        super().__init__()
        self.channel_pool = nn.Conv2d(inputs, outputs, 1)
        self.AAP = nn.AdaptiveAvgPool2d((s1, s2))

    def forward(self, feature_map):
        return F.normalize(self.AAP(self.channel_pool(feature_map)).flatten(1))


class GeMPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([2.7]))

    def forward(self, feature_map):
        return F.normalize(feature_map.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p))


class CosPlace(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.gem, self.fc = GeMPool(), nn.Linear(inputs, outputs)

    def forward(self, feature_map):
        feature_map, power = F.normalize(feature_map), self.gem.p
        return F.normalize(self.fc(feature_map.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)))


class Mean(nn.Module):
    def forward(self, feature_map):
        return F.normalize(feature_map.mean((2, 3)))


class _Dinov2(nn.Module):
    """DINOv2 without its last norm, for aggregations of the map, and of the token, too, if `with_token`."""

    def __init__(self, size, with_token):
        super().__init__()
        self.dino = Dinov2(size)
        self.with_token = with_token

    def forward(self, images):
        tokens = nn.Sequential(*self.dino.blocks)(self.dino.first_tokens(images))
        feature_map = tokens[:, 1:].mT.unflatten(2, tuple(side // 14 for side in images.shape[2:]))
        return (feature_map, tokens[:, 0]) if self.with_token else feature_map


class _Model(nn.Module):
    """A ResNet of MixVPR, which is torchvision's module without its last layers."""

    def __init__(self, model, layers):
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, images):
        for layer in self.layers:
            images = getattr(self.model, layer)(images)
        return images


class _Parts(nn.Module):
    """A ResNet of OpenVPRLab, in a frozen and a trained part."""

    def __init__(self, layers, num_frozen):
        super().__init__()
        self.frozen_layers = nn.Sequential(*layers[:num_frozen]) if num_frozen else nn.Identity()
        self.unfrozen_layers = nn.Sequential(*layers[num_frozen:])

    def forward(self, images):
        return self.unfrozen_layers(self.frozen_layers(images))


class Published(nn.Module):
    """The module with a backbone and an aggregation, which returns descriptors, in eval mode."""

    def __init__(self, backbone, aggregator):
        super().__init__()
        self.backbone, self.aggregator = shaken(backbone), aggregator
        self.eval()

    @torch.no_grad()
    def forward(self, images):
        features = self.backbone(images)
        return self.aggregator(*features) if isinstance(features, tuple) else self.aggregator(features)


def dinov2(size, *, with_token=False):
    """Return the backbone and its channels."""
    return _Dinov2(size, with_token), SIZES[size][0]


def resnet(architecture, *, crop, naming, num_frozen=0):
    """Return the backbone and its channels.

    Args:
        crop: without the last stage.
        naming: `net` of BoQ, `model` of MixVPR, `parts` of OpenVPRLab.
        num_frozen: layers of the frozen part of `parts`.
    """
    model = torchvision.models.get_model(architecture, weights=None)
    del model.avgpool, model.fc
    channels = CHANNELS.get(architecture, 2048)
    if crop:
        del model.layer4
        channels //= 2
    names = [name for name, _ in model.named_children()]
    layers = [getattr(model, name) for name in names]
    if naming == "model":
        return _Model(model, names), channels
    if naming == "parts":
        return _Parts([nn.Sequential(*layers[:4]), *layers[4:]], num_frozen), channels
    backbone = nn.Sequential()
    backbone.add_module("net", nn.Sequential(*layers))
    return backbone, channels
