"""Import the feature extractor of Divide&Classify: backbone (EfficientNet), mean pooling, linear layer, L2."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, tensor_named
from progeo.convert.numbered_convnets import convert_numbered
from progeo.convert.source import Source

_IMAGE_SIZE = 256


def is_divide_and_classify(source: Source) -> bool:
    """Return whether a file has the parameter names of Divide&Classify."""
    return {"backbone", "classifier"} <= source.prefixes


def read_divide_and_classify(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert the feature extractor of Divide&Classify; for errors see `convert_encoder`."""
    return convert_numbered(
        source.found,
        aggregation="mean_linear",
        descriptor_dim=len(tensor_named(source.state, "classifier.0.weight", 2)),
        image_size=choices.image_size or _IMAGE_SIZE,
        head=lambda ours: ours.replace("aggregation.linear.", "classifier.0."),
    )
