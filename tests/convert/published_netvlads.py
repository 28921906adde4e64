"""Networks of OpenIBL, WAKD, the deep VG benchmark and pytorch-NetVlad, under the names of the published modules."""

import torch
import torch.nn.functional as F
import torchvision
from published_convnets import GeM, shaken
from torch import nn
from torchvision.models.vgg import cfgs, make_layers


class NetVLAD(nn.Module):
    """NetVLAD with the residual of every local feature to every cluster; descriptors are not normalized yet."""

    def __init__(self, num_clusters, channels, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, num_clusters, 1, bias=bias)
        nn.init.normal_(self.conv.weight)
        self.centroids = nn.Parameter(torch.rand(num_clusters, channels))

    def forward(self, feature_map):
        features = feature_map / feature_map.norm(dim=1, keepdim=True).clamp(min=1e-12)
        shares = self.conv(features).softmax(dim=1).flatten(2)  # (B, K, h w)
        residuals = features.flatten(2)[:, None] - self.centroids[None, :, :, None]  # (B, K, C, h w)
        return (residuals * shares[:, :, None]).sum(dim=3)


def vlad_descriptors(netvlad, feature_map):
    residuals = F.normalize(netvlad(feature_map), dim=2)
    return F.normalize(residuals.flatten(1), dim=1)


def vgg16_layers():
    """The features of a VGG16 without their last ReLU and max pooling."""
    layers = make_layers(cfgs["D"], batch_norm=False)[:-2]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return layers


def resnet_layers(architecture, cut):
    """The children of a ResNet without the last `cut`: 2 as CosPlace, 3 without the last stage."""
    return nn.Sequential(*list(torchvision.models.get_model(architecture, weights=None).children())[:-cut])


def mobilenet_layers(bias=False):
    """The features of a MobileNetV3, and the layers that WAKD puts behind them."""
    features = torchvision.models.mobilenet_v3_large(weights=None).features
    return features, nn.Conv2d(960, 512, 1, bias=bias), nn.BatchNorm2d(512), nn.Hardswish()


def openibl(base_model, num_clusters=4, channels=512, dim=None):
    """Return the module, whose `base_model` is a ModuleDict of layers in order."""
    parts = {"base_model": base_model, "net_vlad": NetVLAD(num_clusters, channels)}
    if dim is not None:
        parts["pca_layer"] = nn.Conv2d(num_clusters * channels, dim, 1)
    return shaken(nn.ModuleDict(parts))


def openibl_descriptors(model, images):
    for layer in model["base_model"].values():
        images = layer(images)
    descriptors = vlad_descriptors(model["net_vlad"], images)
    if "pca_layer" in model:
        descriptors = F.normalize(model["pca_layer"](descriptors[:, :, None, None]).flatten(1), dim=-1)
    return descriptors


def benchmark(architecture, cut, channels, num_clusters=4):
    backbone = resnet_layers(architecture, cut)
    return shaken(nn.ModuleDict({"backbone": backbone, "aggregation": NetVLAD(num_clusters, channels)}))


def benchmark_gem(architecture, cut, channels, dim=24):
    """GeM after an L2 normalization, then a linear layer and another one."""
    pooling = nn.Sequential(nn.Identity(), GeM(), nn.Identity())
    head = nn.Sequential(pooling, nn.Linear(channels, dim), nn.Identity())
    return shaken(nn.ModuleDict({"backbone": resnet_layers(architecture, cut), "aggregation": head}))


def pytorch_netvlad(encoder, channels=512, bias=False):
    return shaken(nn.ModuleDict({"encoder": encoder, "pool": NetVLAD(4, channels, bias)}))
