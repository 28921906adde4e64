"""What `torch.hub.load` offers through `hubconf.py` at the top level, and `from_pretrained` for who looks for that."""

from torch import nn

from progeo.export.weights import load_encoder
from progeo.models.encoder import build_encoder

dependencies = ["torch", "torchvision", "open_clip", "safetensors"]


def progeo(weights: str) -> nn.Module:
    """Load an exported encoder, see `progeo.load_encoder`.

    Args:
        weights: its folder; the URL of one, from which `model.safetensors` and `model.json` are fetched; or
            `hf-hub:OWNER/NAME`.
    """
    return load_encoder(weights)


def from_pretrained(name: str) -> nn.Module:
    """Load an exported encoder, under the name that Hugging Face's own libraries give this; see `progeo`."""
    return load_encoder(name)


def progeo_untrained(
    backbone: str = "ViT-B-16",
    descriptor_dim: int | None = None,
    *,
    weights: str = "random",
    image_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build an encoder as stage 2 begins with, in eval mode.

    Args:
        backbone: `RN50`, `ViT-B-16`, `resnet18` and so on, the `model.architecture` of the settings.
        descriptor_dim: D; None takes that of the backbone.
        weights: `random`, or a tag or a file as in `model.weights`.
        image_size: pixels, one side of a square or (height, width); None takes the backbone's own.
    """
    return build_encoder(backbone, weights, image_size, descriptor_dim=descriptor_dim).eval()
