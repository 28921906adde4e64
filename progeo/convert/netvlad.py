"""Convert encoders with a torchvision backbone and NetVLAD, which programs name alike up to the prefixes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from progeo.convert.converted_encoder import ConvertedEncoder, convert_encoder, tensor_named
from progeo.models.aggregation import aggregation_dim, filled_options
from progeo.models.backbones import empty_traits
from progeo.models.backbones.family import ImageSize
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS, Color
from progeo.models.weight_files.checkpoints import FoundWeights

NETVLAD_IMAGE_SIZE = (480, 640)
"""Size of the images of Pitts30k, which these programs train and test with."""


def convert_netvlad(
    found: FoundWeights,
    *,
    backbone: tuple[str, Callable[[str], str]],
    netvlad: str,
    linear: str | None = None,
    image_size: ImageSize,
    pixels: tuple[Color, Color] = NORMALIZATIONS["imagenet"],
    **options: Any,
) -> ConvertedEncoder:
    """Convert an encoder with NetVLAD, whose projection is a linear layer after it, such as PCA, if the file has one.

    Args:
        backbone: torchvision's name of the backbone, and the function from our names to its names, see `find_backbone`.
        netvlad: prefix of the `conv.weight` (K, C, 1, 1) and `centroids` (K, C).
        linear: prefix of the `weight` (D, K C), or (D, K C, 1, 1), and `bias` (D,) of that layer; None if the program
            has none.
        pixels: mean and std.
        options: further options of the aggregation than the number of clusters.

    Raises:
        ValueError: see `convert_encoder`.
    """
    architecture, backbone_name = backbone
    names = {"aggregation.assignment": f"{netvlad}conv.weight", "aggregation.centroids": f"{netvlad}centroids"}
    is_projected = linear is not None and any(name.startswith(linear) for name in found.state)
    if is_projected:
        names |= {f"projection.0.{name}": f"{linear}{name}" for name in ("weight", "bias")}
    # Their linear layers are 1 x 1 convolutions.
    state = {
        name: tensor.flatten(1) if name in names.values() and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in found.state.items()
    }
    options["num_clusters"] = len(tensor_named(state, f"{netvlad}centroids", 2))
    pooled_dim = aggregation_dim("netvlad", empty_traits(f"torchvision/{architecture}"), None, options, architecture)
    mean, std = pixels
    spec = EncoderSpec(
        family="torchvision",
        architecture=architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=len(tensor_named(state, f"{linear}weight", 2)) if is_projected else pooled_dim,
        mean=mean,
        std=std,
        aggregation="netvlad",
        aggregation_options=filled_options("netvlad", options),
        pooled_dim=pooled_dim if is_projected else None,
    )
    found = replace(found, state=state)
    return convert_encoder(spec, found, their_name=lambda ours: names.get(ours) or backbone_name(ours))
