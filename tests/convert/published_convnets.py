"""The networks of CosPlace, EigenPlaces and Divide&Classify, put together under the names of the published modules."""

import torch
import torchvision
from torch import nn


class GeM(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([2.7]))


def shaken(module):
    """The module with statistics of batch norm as after a training, in eval mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module.eval()


def cosplace(architecture, dim=24):
    """The trunk as CosPlace cuts it, and its head, under the names of the published module."""
    classifier = torchvision.models.get_model(architecture, weights=None)
    parts = classifier.features.children() if architecture == "vgg16" else classifier.children()
    trunk = nn.Sequential(*list(parts)[:-2])
    with torch.no_grad():
        channels = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    head = nn.Sequential(nn.Identity(), GeM(), nn.Identity(), nn.Linear(channels, dim))
    return shaken(nn.ModuleDict({"backbone": trunk, "aggregation": head}))


def divide_and_classify(architecture):
    trunk = torchvision.models.get_model(architecture, weights=None).features
    with torch.no_grad():
        channels = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    head = nn.Sequential(nn.Linear(channels, channels), nn.Identity())
    return shaken(nn.ModuleDict({"backbone": trunk, "classifier": head}))
