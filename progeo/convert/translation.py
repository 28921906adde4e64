"""From the names of another program to ours: nothing may be missing, and nothing left over that is not known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from progeo.models.backbones.open_clip import ImageSize
from progeo.models.encoder import Encoder, EncoderSpec, empty_encoder, restore_encoder
from progeo.models.state_dicts import check_fits, with_batch_counts
from progeo.models.weight_files.checkpoints import FoundWeights


@dataclass(frozen=True)
class Choices:
    """What a file does not say of itself; None takes what is usual for its kind."""

    image_size: ImageSize | None = None
    normalized: bool | None = None
    """Whether descriptors that CLIP pools get length 1."""
    quickgelu: bool | None = None
    """Whether a CLIP has the activation of OpenAI's."""
    weights_in: str | None = None
    """Which part of a checkpoint holds the weights, see `find_weights`."""


@dataclass(frozen=True)
class Foreign:
    """What was made of a file."""

    encoder: Encoder
    kind: str
    """Which program wrote the file."""
    left_out: tuple[str, ...] = ()
    """Names in the file that an encoder does not need."""
    clip: Mapping[str, Tensor] | None = None
    """All weights of the CLIP, under open_clip's names, where texts share the space of the descriptors."""
    remarks: tuple[str, ...] = ()
    """What was taken for granted, in sentences."""
    says_pixels: bool = True
    """Whether the mean and std of its pixels are known, not CLIP's for want of its own."""


def with_what_was_found(foreign: Foreign, found: FoundWeights) -> Foreign:
    """What was made of a state dict, with what lay beside it in its file and what was said of that."""
    return replace(foreign, left_out=(*found.ignored, *foreign.left_out), remarks=(*found.remarks, *foreign.remarks))


def translated_encoder(
    spec: EncoderSpec,
    state: Mapping[str, Tensor],
    *,
    their_name: Callable[[str], str],
    not_needed: tuple[str, ...] = (),
) -> tuple[Encoder, tuple[str, ...]]:
    """Build the encoder that `spec` describes with the weights of a foreign state dict, in single precision.

    Args:
        spec: what the state dict was found to be.
        state: names and tensors as they are in the file.
        their_name: the file's name for each of our parameters and buffers.
        not_needed: how names begin that may be left out.

    Returns:
        The encoder, in eval mode, and the names that were left out.

    Raises:
        ValueError: weights that are missing, left over or of another shape, with the first of them.
    """
    ours = empty_encoder(spec).state_dict()
    theirs = {their_name(name): name for name in ours}
    left_out = tuple(name for name in state if name not in theirs and name.startswith(not_needed))
    kept = with_batch_counts({name: tensor for name, tensor in state.items() if name not in left_out}, theirs)
    check_fits(kept, {name: ours[theirs[name]] for name in theirs}, spec.architecture)
    return restore_encoder(spec, {theirs[name]: single_precision(tensor) for name, tensor in kept.items()}), left_out


def single_precision(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own, in single precision where it holds fractions."""
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()


def head_name(ours: str) -> str:
    """CosPlace's name of a parameter of the head: L2, GeM, flatten, linear, L2 in a row."""
    return ours.replace("pooling.p", "aggregation.1.p").replace("pooling.linear.", "aggregation.3.")


def tensor_named(state: Mapping[str, Tensor], name: str, num_dims: int) -> Tensor:
    """A tensor that must be there, of so many dimensions.

    Raises:
        ValueError: it is not.
    """
    if name not in state:
        raise ValueError(f"The weights are not whole: {name} is missing.")
    if state[name].ndim != num_dims or not state[name].numel():
        raise ValueError(f"{name} should be a {num_dims}-d tensor with values, is {tuple(state[name].shape)}.")
    return state[name]
