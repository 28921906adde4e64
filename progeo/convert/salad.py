"""Import encoders of SALAD and CliqueMining: DINOv2 as `backbone.model.*`, SALAD as `aggregator.*`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, tensor_named
from progeo.convert.dinov2 import find_dinov2
from progeo.convert.source import Source
from progeo.image_files import Resize
from progeo.models.aggregation import filled_options
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.weight_files.checkpoints import FoundWeights

SALAD_MARKS = ("aggregator.dust_bin",)
SALAD_IMAGE_SIZE = 322
"""Side of the images that SALAD, CliqueMining and MegaLoc are tested with."""
_LAYERS = {
    "num_clusters": "score.3.weight",
    "cluster_dim": "cluster_features.3.weight",
    "token_dim": "token_features.2.weight",
    "hidden_dim": "score.0.weight",
}
"""By options of SALAD, the layer with as many outputs."""


def is_salad(source: Source) -> bool:
    """Return whether a file has the parameter names of SALAD."""
    return set(SALAD_MARKS) <= source.state.keys() and "backbone.model.cls_token" in source.state


def read_salad(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of SALAD or CliqueMining; for errors see `convert_salad`."""
    arguments = _hyperparameters(source.content)
    has_norm = bool(arguments.get("norm_layer", not arguments))  # False by default there, and True in what is released
    return convert_salad(source.found, choices, backbone="backbone.model.", salad="aggregator.", has_norm=has_norm)


def convert_salad(
    found: FoundWeights,
    choices: Choices,
    *,
    backbone: str,
    salad: str,
    linear: str | None = None,
    has_norm: bool = True,
    resize: Resize = "bilinear",
) -> ConvertedEncoder:
    """Convert an encoder of DINOv2 with SALAD, whose projection is a linear layer after it, if the program has one.

    Args:
        backbone, salad: prefixes of the names of their parameters.
        linear: prefix of the `weight` and `bias` of that layer.
        has_norm: see `find_dinov2`.
        resize: interpolation by which the program resizes images.

    Raises:
        ValueError: see `find_dinov2` and `convert_encoder`.
    """
    image_size = choices.image_size or SALAD_IMAGE_SIZE
    dinov2 = find_dinov2(found, backbone, image_size, has_norm=has_norm)
    # Their layers of local features are 1 x 1 convolutions.
    state = {
        name: tensor.flatten(1) if name.startswith(salad) and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in dinov2.found.state.items()
    }
    options = {option: len(tensor_named(state, f"{salad}{layer}", 2)) for option, layer in _LAYERS.items()}
    pooled_dim = options["num_clusters"] * options["cluster_dim"] + options["token_dim"]
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family="timm",
        architecture=dinov2.architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=pooled_dim if linear is None else len(tensor_named(state, f"{linear}weight", 2)),
        mean=mean,
        std=std,
        aggregation="salad",
        aggregation_options=filled_options("salad", options),
        interpolation=dinov2.interpolation,
        resize=resize,
        pooled_dim=None if linear is None else pooled_dim,
        configuration=dinov2.configuration,
    )
    converted = convert_encoder(
        spec,
        replace(dinov2.found, state=state),
        their_name=lambda ours: ours.replace("aggregation.", salad, 1).replace("projection.0.", linear or "", 1),
        skipped_prefixes=(f"{salad}dust_bin",),
    )
    remark = f"{salad}dust_bin, the score of SALAD's dustbin, does not change descriptors."
    return replace(converted, remarks=(*converted.remarks, remark))


def _hyperparameters(content: Any) -> Mapping[str, Any]:
    """Return the arguments of the backbone in a checkpoint of Lightning; empty if it does not hold them."""
    for name in ("hyper_parameters", "backbone_config"):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}
