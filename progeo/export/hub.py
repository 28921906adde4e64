"""Entry points of `torch.hub.load`, re-exported by `hubconf.py`, and a `from_pretrained` as on Hugging Face."""

from progeo.export.weights import load_encoder
from progeo.models.encoder import Encoder, build_encoder

dependencies = ["torch", "torchvision", "open_clip", "timm", "safetensors"]


def progeo(weights: str) -> Encoder:
    """Load an exported encoder, see `progeo.load_encoder`.

    Args:
        weights: a folder with `model.safetensors` and `model.json`, the URL of such a folder, or `hf-hub:OWNER/NAME`.
    """
    return load_encoder(weights)


def from_pretrained(name: str) -> Encoder:
    """Load an exported encoder; the name follows Hugging Face's libraries. See `progeo`."""
    return load_encoder(name)


def progeo_untrained(
    backbone: str = "ViT-B-16",
    descriptor_dim: int | None = None,
    *,
    weights: str = "random",
    image_size: int | tuple[int, int] | None = None,
) -> Encoder:
    """Build an encoder as it is before stage 2 trains it, in eval mode.

    Args:
        backbone: architecture such as `RN50` or `timm/vit_small_patch14_dinov2`, as in the setting
            `model.architecture`.
        descriptor_dim: D; None takes the dimension of the backbone.
        weights: `random`, or a tag or file as in the setting `model.weights`.
        image_size: pixels, the side of a square or (height, width); None takes the size of the backbone.
    """
    return build_encoder(backbone, weights, image_size, descriptor_dim=descriptor_dim).eval()
