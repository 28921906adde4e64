"""CLIPs of OpenAI and of open_clip: their image features as an encoder, and their texts beside it."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from progeo.export.foreign.clip_towers import tower_architecture, tower_image_size
from progeo.export.foreign.translation import Choices, Foreign, single_precision, translated_encoder
from progeo.models.clip import NORMALISATIONS, as_height_width, resize_input, skeleton_clip
from progeo.models.encoder import EncoderSpec
from progeo.models.state_dicts import check_fits

_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    *_OPENAI_NUMBERS,
)


def read_clip(
    state: Mapping[str, Tensor],
    choices: Choices,
    *,
    kind: str | None = None,
    quickgelu: bool | None = None,
    head_width: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Foreign:
    """An encoder that gives CLIP's own image features.

    Args:
        state: `visual.*` and the text tower, under the names of OpenAI and open_clip.
        choices: of who imports; they win over what the file says.
        kind: which program wrote the file; None tells OpenAI from open_clip.
        quickgelu: the activation that the file says; None where it does not.
        head_width: dimensions of an attention head that the file says.
        mean, std: of the pixels, as the file says; None takes CLIP's.
    """
    # The causal mask is no weight, but some programs store it with them.
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".attn_mask")}
    remarks = []
    if quickgelu is None:
        quickgelu = all(name in state for name in _OPENAI_NUMBERS)
        kind = kind or ("OpenAI" if quickgelu else "open_clip")
        if not quickgelu and choices.quickgelu is None:
            remarks.append("The file does not say its activation; GELU is taken, --quickgelu true takes QuickGELU.")
    quickgelu = quickgelu if choices.quickgelu is None else choices.quickgelu
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    architecture = tower_architecture(visual, quickgelu=quickgelu, head_width=head_width)
    projection = visual["proj"].shape[1] if "proj" in visual else len(visual["attnpool.c_proj.weight"])
    clip_mean, clip_std = NORMALISATIONS["clip"]
    spec = EncoderSpec(
        architecture=architecture,
        image_size=tower_image_size(visual, choices.image_size),
        descriptor_dim=projection,
        normalised=True if choices.normalised is None else choices.normalised,
        mean=tuple(mean or clip_mean),
        std=tuple(std or clip_std),
        align_corners=False,
        pooling="clip",
    )
    encoder, left_out = translated_encoder(
        spec, state, their_name=lambda ours: ours.replace("backbone.", "visual.", 1), not_needed=_TEXT
    )
    try:
        clip = _whole_clip({name: tensor for name, tensor in state.items() if name not in _OPENAI_NUMBERS}, spec)
    except ValueError as error:
        remarks.append(f"Descriptors cannot be compared with texts. {error}")
        clip = None
    return Foreign(encoder, kind or "open_clip", left_out, clip, tuple(remarks))


def _whole_clip(state: Mapping[str, Tensor], spec: EncoderSpec) -> Mapping[str, Tensor]:
    """All weights of a CLIP as `load_clip` reads them, its position embedding resized to the architecture's own size.

    Raises:
        ValueError: something is missing, such as the text tower, or left over.
    """
    clip = skeleton_clip(spec.architecture, spec.image_size)
    check_fits(state, clip.state_dict(), spec.architecture)
    clip.load_state_dict({name: single_precision(tensor) for name, tensor in state.items()}, assign=True)
    own_size = as_height_width(skeleton_clip(spec.architecture).visual.image_size)
    resize_input(clip.visual, own_size, align_corners=False)
    return clip.state_dict()
