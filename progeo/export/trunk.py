"""The backbone alone, in the names that open_clip and torchvision give its layers."""

from pathlib import Path

import open_clip
from safetensors.torch import save_file

from progeo.files import replacing
from progeo.models.convnets import CONVNETS
from progeo.models.encoder import Encoder, EncoderSpec


def save_trunk(path: Path, encoder: Encoder) -> None:
    """Write the state dict of the backbone: `visual.*` of a CLIP of open_clip, else as torchvision's classifier has it.

    What comes after the backbone is not in it, nor a CLIP's text tower, which stays as it was.
    """
    prefix = "" if encoder.spec.architecture in CONVNETS else "visual."
    state = {f"{prefix}{name}": tensor.contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)


def trunk_usage(spec: EncoderSpec, weights: str | None) -> str:
    """Python that loads the file `trunk.safetensors` elsewhere.

    Args:
        spec: of the encoder that it was taken from.
        weights: what training began from, whose text tower the trunk goes with; None where that is not known.
    """
    if spec.architecture in CONVNETS:
        return (
            "import torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f'classifier = torchvision.models.get_model("{spec.architecture}")\n'
            'classifier.load_state_dict(load_file("trunk.safetensors"), strict=False)  # its last layers are not there'
        )
    known = weights in open_clip.list_pretrained_tags_by_model(spec.architecture)
    pretrained = f'"{weights}"' if known else "None"
    rest = (
        "the text tower stays as it is" if known else "the text tower is that of the weights that training began from"
    )
    return (
        "import open_clip\n"
        "from safetensors.torch import load_file\n\n"
        f'clip = open_clip.create_model("{spec.architecture}", {pretrained}, force_image_size={spec.image_size})\n'
        f'clip.load_state_dict(load_file("trunk.safetensors"), strict=False)  # {rest}'
    )
