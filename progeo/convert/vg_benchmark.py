"""Import encoders of the deep visual geo-localization benchmark: `backbone.<number>.*` and NetVLAD, or GeM and linear.

The GeM is that of CosPlace under other names.
"""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, tensor_named
from progeo.convert.netvlad import NETVLAD_IMAGE_SIZE, convert_netvlad
from progeo.convert.numbered_convnets import convert_numbered, find_backbone
from progeo.convert.source import Source

_NETVLAD = "aggregation.centroids"
_GEM, _GEM_ALONE = "aggregation.0.1.p", "aggregation.0.0.p"


def is_vg_benchmark(source: Source) -> bool:
    """Return whether a file has the parameter names of the benchmark."""
    return "backbone" in source.prefixes and not {_NETVLAD, _GEM, _GEM_ALONE}.isdisjoint(source.state)


def read_vg_benchmark(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of the benchmark.

    Raises:
        ValueError: a GeM without L2 normalization before it; for further errors see `convert_encoder`.
    """
    image_size = choices.image_size or NETVLAD_IMAGE_SIZE
    if _NETVLAD in source.state:
        backbone = find_backbone(source.state)
        return convert_netvlad(source.found, backbone=backbone, netvlad="aggregation.", image_size=image_size)
    if _GEM_ALONE in source.state:
        raise ValueError(
            f"{source.path} holds {_GEM_ALONE}: GeM has an L2 normalization before it here, import one trained with "
            f"--l2 before_pool."
        )
    return convert_numbered(
        source.found,
        aggregation="gem",
        descriptor_dim=len(tensor_named(source.state, "aggregation.1.weight", 2)),
        image_size=image_size,
        head=lambda ours: ours.replace("aggregation.p", _GEM).replace("aggregation.linear.", "aggregation.1."),
    )
