"""Export the backbone alone, with the parameter names of open_clip or torchvision."""

from pathlib import Path

import open_clip
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file

from progeo.files import replacing
from progeo.models.backbones.position_embedding import position_embedding_name
from progeo.models.backbones.torchvision import CONVNETS
from progeo.models.encoder import Encoder


def save_backbone(path: Path, encoder: Encoder) -> None:
    """Write the state dict of the backbone: `visual.*` of an open_clip CLIP, or torchvision's classifier names.

    Layers after the backbone and the text tower of a CLIP, which training does not change, are not included.
    """
    prefix = "" if encoder.spec.architecture in CONVNETS else "visual."
    state = {f"{prefix}{name}": tensor.contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)


def backbone_usage(encoder: Encoder, weights: str | None) -> str:
    """Return Python code, for the model card, that loads `backbone.safetensors` in open_clip or torchvision.

    Args:
        encoder: the encoder that the backbone was taken from.
        weights: weights that training started from, whose text tower belongs to the backbone; None if not known.
    """
    architecture = encoder.spec.architecture
    if architecture in CONVNETS:
        return (
            "import torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f'classifier = torchvision.models.get_model("{architecture}")\n'
            'classifier.load_state_dict(load_file("backbone.safetensors"), strict=False)  # without its last layers'
        )
    known = weights in open_clip.list_pretrained_tags_by_model(architecture)
    pretrained = f'"{weights}"' if known else "None"
    rest = (
        "the text tower stays as it is" if known else "the text tower is that of the weights that training began from"
    )
    size, resizing = _of_image_size(encoder)
    return (
        "import open_clip\n"
        "from safetensors.torch import load_file\n\n"
        f'clip = open_clip.create_model("{architecture}", {pretrained}{size})\n'
        'backbone = load_file("backbone.safetensors")\n'
        f"{resizing}"
        f"clip.load_state_dict(backbone, strict=False)  # {rest}"
    )


def _of_image_size(encoder: Encoder) -> tuple[str, str]:
    """Return an argument of `create_model`, or a line of Python, that fits the position embedding to the backbone."""
    embedding = position_embedding_name(encoder.backbone)
    if embedding is None:
        return "", ""
    if isinstance(encoder.backbone, VisionTransformer):
        return f", force_image_size={encoder.image_size}", ""
    # For a ResNet open_clip supports square images only, and does not resize the embedding.
    return "", f'clip.visual.{embedding}.data = backbone["visual.{embedding}"]\n'
