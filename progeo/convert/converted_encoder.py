"""Convert state dicts of other programs to encoders, refusing missing and unexpected keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from progeo.image_files import Resize
from progeo.models.backbones.family import ImageSize
from progeo.models.encoder import Encoder, EncoderSpec, empty_encoder, restore_encoder
from progeo.models.pixel_statistics import Color
from progeo.models.state_dicts import check_fits, with_batch_counts
from progeo.models.weight_files.checkpoints import FoundWeights, is_weight


@dataclass(frozen=True)
class Choices:
    """Import settings given by the user; None takes the value in the file, or the default of its format."""

    image_size: ImageSize | None = None
    """Image size in pixels, the side of a square or (height, width)."""
    normalized: bool | None = None
    """Whether descriptors that are the token of a backbone are L2-normalized."""
    quickgelu: bool | None = None
    """Whether the activation of a CLIP is QuickGELU, as in OpenAI's CLIP."""
    weights_in: str | None = None
    """Dotted address of the weights in a checkpoint, see `find_weights`."""
    mean: Color | None = None
    """Pixel mean of red, green and blue in 0..1."""
    std: Color | None = None
    """Pixel std of red, green and blue in 0..1."""
    resize: Resize | None = None
    """Interpolation by which images are resized."""


@dataclass(frozen=True)
class ConvertedEncoder:
    """An encoder with the weights of another program, and information about their file."""

    encoder: Encoder
    program: str = ""
    """The program that wrote the file, see `FORMATS`."""
    skipped: tuple[str, ...] = ()
    """Names in the file that the encoder does not need."""
    clip: Mapping[str, Tensor] | None = None
    """All weights of the CLIP under open_clip's names, if text features share the space of descriptors, else None."""
    remarks: tuple[str, ...] = ()
    """Assumptions made in the import, as sentences for the user."""
    has_pixel_statistics: bool = True
    """Whether the pixel mean or std is known from the file or its format; else both are CLIP's by default."""


def convert_encoder(
    spec: EncoderSpec,
    found: FoundWeights,
    *,
    their_name: Callable[[str], str],
    skipped_prefixes: tuple[str, ...] = (),
) -> ConvertedEncoder:
    """Build an encoder from its spec with the weights of another program's state dict, in float32.

    Args:
        their_name: maps each of our parameter and buffer names to the name in the file.
        skipped_prefixes: prefixes of names in the file that the encoder does not need.

    Raises:
        ValueError: missing keys, unexpected keys, or tensors of another shape; the message names the first.
    """
    ours = empty_encoder(spec).state_dict()
    theirs = {their_name(name): name for name in ours}
    skipped = tuple(name for name in found.state if name not in theirs and name.startswith(skipped_prefixes))
    kept = with_batch_counts({name: tensor for name, tensor in found.state.items() if name not in skipped}, theirs)
    check_fits(kept, {name: ours[theirs[name]] for name in theirs}, spec.architecture)
    encoder = restore_encoder(spec, {theirs[name]: single_precision(tensor) for name, tensor in kept.items()})
    return ConvertedEncoder(encoder, skipped=(*found.ignored, *skipped), remarks=found.remarks)


def single_precision(tensor: Tensor) -> Tensor:
    """Copy a tensor, converting floating-point values to float32."""
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()


def head_name(ours: str) -> str:
    """Convert a parameter name of the GeM head to CosPlace's, whose layers are L2, GeM, flatten, linear, L2."""
    return ours.replace("aggregation.p", "aggregation.1.p").replace("aggregation.linear.", "aggregation.3.")


def tensor_named(state: Mapping[str, Tensor], name: str, num_dims: int) -> Tensor:
    """Return a required tensor of `num_dims` dimensions.

    Raises:
        ValueError: it is missing, empty, or has another number of dimensions.
    """
    if not is_weight(name, state.get(name)):
        raise ValueError(f"The weights are not complete: {name} is missing.")
    if state[name].ndim != num_dims or not state[name].numel():
        raise ValueError(f"{name} should be a {num_dims}-d tensor with values, is {tuple(state[name].shape)}.")
    return state[name]
