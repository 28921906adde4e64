"""Import encoders of the deep visual geo-localization benchmark: `backbone.<number>.*` and NetVLAD, or GeM and linear.

The GeM is that of CosPlace under other names. A linear layer after NetVLAD becomes the projection.
"""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, tensor_named
from progeo.convert.netvlad import NETVLAD_IMAGE_SIZE, convert_netvlad
from progeo.convert.numbered_convnets import convert_numbered, find_backbone
from progeo.convert.source import Source

_NETVLAD, _NETVLAD_LINEAR = "aggregation.centroids", "aggregation.0.centroids"
_LINEAR = "aggregation.1."
_GEM, _GEM_UNNORMALIZED = "aggregation.0.1.p", "aggregation.0.0.p"
_GEM_ALONE = ("aggregation.0.p", "aggregation.1.p")


def is_vg_benchmark(source: Source) -> bool:
    """Return whether a file has the parameter names of the benchmark."""
    names = (_NETVLAD, _NETVLAD_LINEAR, _GEM, _GEM_UNNORMALIZED)
    has_aggregation = any(name in source.state for name in names) or _gem_alone(source) is not None
    return "backbone" in source.prefixes and has_aggregation


def read_vg_benchmark(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of the benchmark.

    Raises:
        ValueError: a GeM without L2 normalization before it or without a linear layer after it; for further errors see
            `convert_encoder`.
    """
    image_size = choices.image_size or NETVLAD_IMAGE_SIZE
    for centroids, linear in ((_NETVLAD, None), (_NETVLAD_LINEAR, _LINEAR)):
        if centroids in source.state:
            return convert_netvlad(
                source.found,
                backbone=find_backbone(source.state),
                netvlad=centroids.removesuffix("centroids"),
                linear=linear,
                image_size=image_size,
            )
    if alone := _gem_alone(source):
        raise ValueError(
            f"{source.path} holds {alone} without a linear layer: GeM has one after it here, import one trained with "
            f"--fc_output_dim."
        )
    if _GEM_UNNORMALIZED in source.state:
        raise ValueError(
            f"{source.path} holds {_GEM_UNNORMALIZED}: GeM has an L2 normalization before it here, import one trained "
            f"with --l2 before_pool."
        )
    return convert_numbered(
        source.found,
        aggregation="gem",
        descriptor_dim=len(tensor_named(source.state, "aggregation.1.weight", 2)),
        image_size=image_size,
        head=lambda ours: ours.replace("aggregation.p", _GEM).replace("aggregation.linear.", "aggregation.1."),
    )


def _gem_alone(source: Source) -> str | None:
    """Return the name of the exponent of a GeM without a linear layer; CosPlace has one, `aggregation.3.*`."""
    has_linear = any(name.startswith("aggregation.3.") for name in source.state)
    return None if has_linear else next((name for name in _GEM_ALONE if name in source.state), None)
