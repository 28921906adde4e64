"""Load the classifier whose cells are searched, of the encoder itself or of another one."""

from progeo.evaluation.cell_index import Cells
from progeo.export.classifier import load_encoder_and_classifier
from progeo.features.descriptors import descriptor_metadata
from progeo.models.encoder import Encoder


def load_cells(name: str, encoder: Encoder | None) -> Cells:
    """Load a classifier and, if it belongs to another network, its encoder.

    Args:
        name: the encoder with the classifier, see `load_encoder`.
        encoder: that of the images; None if their descriptors are those of another program.

    Raises:
        FileNotFoundError, ValueError: see `load_encoder_and_classifier`.
    """
    other, classifier = load_encoder_and_classifier(name)
    is_same = encoder is not None and descriptor_metadata(other) == descriptor_metadata(encoder)
    return Cells(classifier, None if is_same else other)
