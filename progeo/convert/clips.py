"""Import CLIPs of OpenAI and open_clip: the visual tower as an encoder, and all weights for text features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from progeo.convert.clip_towers import is_vit, tower_architecture, tower_image_size
from progeo.convert.translation import Choices, Foreign, single_precision, tensor_named, translated_encoder
from progeo.models.backbones.open_clip import NORMALIZATIONS, empty_clip
from progeo.models.backbones.position_embedding import as_height_width, resize_input
from progeo.models.clip_files import CLIP_MARK, OPENAI_NUMBERS, is_of_openai, plain_state
from progeo.models.encoder import EncoderSpec
from progeo.models.state_dicts import check_fits

_TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    *OPENAI_NUMBERS,
)


@dataclass(frozen=True)
class Said:
    """Properties of a CLIP that are stated outside its weights; None where they are not stated."""

    kind: str
    """Which program wrote the file."""
    quickgelu: bool | None = None
    """Whether the activation is QuickGELU, as in OpenAI's CLIP."""
    head_width: float | None = None
    """Dimension of an attention head of the visual tower."""
    text_heads: float | None = None
    """Number of attention heads of the text tower."""
    mean: Sequence[float] | None = None
    """Pixel mean of red, green and blue in 0..1."""
    std: Sequence[float] | None = None
    """Pixel std of red, green and blue in 0..1."""


def read_clip(state: Mapping[str, Tensor], choices: Choices, said: Said | None = None) -> Foreign:
    """Convert a CLIP to an encoder of its image features, and keep its text tower if all its weights fit.

    Args:
        state: `visual.*` and the text tower, under the names of OpenAI and open_clip.
        choices: settings given by the user; they take precedence over `said`.
        said: properties from a configuration; None if there is none.

    Raises:
        ValueError: the weights are not of a plain CLIP, or do not fit any architecture of open_clip.
    """
    if CLIP_MARK not in state:
        raise ValueError(f"The weights are of no plain CLIP: {CLIP_MARK} is missing.")
    said = said or _said_by_names(state)
    state = plain_state(state)
    spec = _spec(state, choices, said)
    encoder, left_out = translated_encoder(
        spec, state, their_name=lambda ours: ours.replace("backbone.", "visual.", 1), not_needed=_TEXT
    )
    remarks = []
    if said.quickgelu is None and choices.quickgelu is None:
        remarks.append("The file does not say its activation; GELU is taken, --quickgelu true takes QuickGELU.")
    if not (said.mean and said.std):
        remarks.append("The file does not say the mean and the std of its pixels; CLIP's are taken.")
    clip = None
    try:
        weights = {name: tensor for name, tensor in state.items() if name not in OPENAI_NUMBERS}
        clip = _whole_clip(weights, spec, said.text_heads)
    except ValueError as error:
        remarks.append(f"Descriptors cannot be compared with texts. {error}")
    return Foreign(encoder, said.kind, left_out, clip, tuple(remarks), says_pixels=bool(said.mean or said.std))


def _said_by_names(state: Mapping[str, Tensor]) -> Said:
    if not is_of_openai(state):
        return Said("open_clip")
    mean, std = NORMALIZATIONS["clip"]
    return Said("OpenAI", quickgelu=True, mean=mean, std=std)


def _spec(state: Mapping[str, Tensor], choices: Choices, said: Said) -> EncoderSpec:
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    quickgelu = bool(said.quickgelu if choices.quickgelu is None else choices.quickgelu)
    architecture = tower_architecture(visual, quickgelu=quickgelu, head_width=said.head_width)
    if is_vit(visual):
        descriptor_dim = tensor_named(visual, "proj", 2).shape[1]
    else:
        descriptor_dim = len(tensor_named(visual, "attnpool.c_proj.weight", 2))
    mean, std = NORMALIZATIONS["clip"]
    return EncoderSpec(
        architecture=architecture,
        image_size=tower_image_size(visual, choices.image_size),
        descriptor_dim=descriptor_dim,
        normalized=True if choices.normalized is None else choices.normalized,
        mean=tuple(said.mean or mean),
        std=tuple(said.std or std),
        align_corners=False,
        pooling="clip",
    )


def _whole_clip(state: Mapping[str, Tensor], spec: EncoderSpec, text_heads: float | None) -> Mapping[str, Tensor]:
    """Convert all weights of a CLIP for `load_clip`, with the position embedding resized to the architecture's size.

    Raises:
        ValueError: missing keys (such as the text tower), unexpected keys, or another number of attention heads.
    """
    clip = empty_clip(spec.architecture, spec.image_size)
    check_fits(state, clip.state_dict(), spec.architecture)
    heads = clip.transformer.resblocks[0].attn.num_heads
    if text_heads not in (None, heads):
        raise ValueError(f"Their tower has {text_heads} attention heads, that of {spec.architecture} has {heads}.")
    clip.load_state_dict({name: single_precision(tensor) for name, tensor in state.items()}, assign=True)
    own_size = as_height_width(empty_clip(spec.architecture).visual.image_size)
    resize_input(clip.visual, own_size, align_corners=False)
    return clip.state_dict()
