"""Import encoders of OpenIBL and WAKD: `base_model.*`, `net_vlad.*`, and the PCA layer of published weights."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.netvlad import NETVLAD_IMAGE_SIZE, convert_netvlad
from progeo.convert.numbered_convnets import find_backbone
from progeo.convert.source import Source
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.family import NetworkSpec
from progeo.models.weight_files.checkpoints import FoundWeights

OPENIBL_MARKS = ("net_vlad.centroids",)
_MATCONVNET = ((0.48501960784313836, 0.4579568627450961, 0.4076039215686255), (1 / 255, 1 / 255, 1 / 255))
"""Pixel mean and std of MatConvNet's VGG16, with which OpenIBL and WAKD train all their networks."""
_STUDENT = "mobilenet_v3_large_512"
_EPS = 1e-5
"""That of a batch norm in PyTorch by default."""
_STUDENT_WIDTH = 16
"""Channels of the first convolution of a MobileNetV3; those of a VGG16 are 64."""
_STUDENT_IMAGE_SIZE = (480, 672)


def is_openibl(source: Source) -> bool:
    """Return whether a file has the parameter names of OpenIBL and WAKD."""
    return {"base_model", "net_vlad"} <= source.prefixes


def read_openibl(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of OpenIBL or WAKD; for errors see `convert_encoder`."""
    found, image_size = source.found, NETVLAD_IMAGE_SIZE
    first = next((name for name, tensor in found.state.items() if tensor.ndim == 4 and tensor.shape[1] == 3), "")
    if first.endswith("0.0.weight") and len(found.state[first]) == _STUDENT_WIDTH:
        image_size, options = _STUDENT_IMAGE_SIZE, {}
        found, backbone = _student(found, first.removesuffix("0.0.weight"))
    else:
        backbone, options = find_backbone(found.state, first.removesuffix("0.weight")), {"regions": "quarters"}
    return convert_netvlad(
        found,
        backbone=backbone,
        netvlad="net_vlad.",
        linear="pca_layer.",
        image_size=choices.image_size or image_size,
        pixels=_MATCONVNET,
        **options,
    )


def _student(found: FoundWeights, prefix: str) -> tuple[FoundWeights, tuple[str, Callable[[str], str]]]:
    """Find the names of WAKD's student, a MobileNetV3 followed by a convolution and a batch norm of any names.

    Args:
        prefix: what the names of the numbered layers begin with.

    Returns:
        The weights, where the statistics of the last batch norm make up for a bias of the convolution and for another
        eps; and the backbone for `convert_netvlad`.
    """
    network = FAMILIES["torchvision"].empty(NetworkSpec(_STUDENT))
    ours, state = network.state_dict(), dict(found.state)
    names = {name: f"{prefix}{name.removeprefix('features.')}" for name in ours if name.startswith("features.")}
    last = [name for name in state if name.startswith("base_model.") and name not in names.values()]
    convolution = next((name for name in last if state[name].ndim == 4), "base_model.conv.weight")
    mean = next((name for name in last if name.endswith(".running_mean")), "base_model.norm.running_mean")
    for name in ours.keys() - names.keys():
        names[name] = convolution if ours[name].ndim == 4 else _sibling(mean, name)
    *_, norm = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    bias = state.pop(_sibling(convolution, "bias"), 0)
    for name, change in ((mean, -bias), (_sibling(mean, "running_var"), _EPS - norm.eps)):
        if name in state:
            state[name] = state[name] + change
    remark = f"The file does not give the eps of the last batch norm: {_EPS} is taken, PyTorch's default."
    found = replace(found, state=state, remarks=(*found.remarks, remark))
    return found, (_STUDENT, lambda name: names[name.removeprefix("backbone.")])


def _sibling(name: str, other: str) -> str:
    """Return a dotted name with its last part replaced by that of another."""
    return f"{name.rpartition('.')[0]}.{other.rpartition('.')[2]}"
