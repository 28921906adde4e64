"""Convert CLIPs under open_clip's names: the visual tower as an encoder, and all weights for text features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from progeo.convert.clip_towers import tower_architecture, tower_image_size, tower_of
from progeo.convert.converted_encoder import (
    Choices,
    ConvertedEncoder,
    convert_encoder,
    single_precision,
)
from progeo.image_files import Resize
from progeo.models.backbones.clip_configurations import ClipConfiguration, name_of, named_configuration
from progeo.models.backbones.clip_towers import resize_input
from progeo.models.backbones.clips import empty_clip
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.clip_files import CLIP_MARK, OPENAI_NUMBERS, plain_state
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.state_dicts import check_fits
from progeo.models.weight_files.checkpoints import FoundWeights

_TEXT = (
    "text.",
    "text_decoder.",
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
class ClipProperties:
    """Properties of a CLIP that its weights do not reveal; None where they are not known."""

    configuration: ClipConfiguration | None = None
    """Its complete configuration, which makes the following three needless."""
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
    resize: Resize = "bilinear"
    """Interpolation by which images are resized; bilinear where it is not known, too."""


def convert_clip(found: FoundWeights, choices: Choices, properties: ClipProperties) -> ConvertedEncoder:
    """Convert a CLIP to an encoder of its image features, and keep its text tower if all its weights fit.

    Args:
        found: `visual.*` and the text tower, under the names of OpenAI and open_clip.
        choices: settings given by the user; they take precedence over `properties`, of the configuration or the format.

    Raises:
        ValueError: the weights do not fit their configuration; or, without one, they are not of a plain CLIP, or do not
            fit any architecture of open_clip.
    """
    if properties.configuration is None and CLIP_MARK not in found.state:
        raise ValueError(f"The weights are not of a plain CLIP: {CLIP_MARK} is missing.")
    state = plain_state(found.state)
    spec = _spec(state, choices, properties)
    converted = convert_encoder(
        spec,
        replace(found, state=state),
        their_name=lambda ours: ours.replace("backbone.", "visual.", 1),
        skipped_prefixes=_TEXT,
    )
    remarks = list(found.remarks)
    if properties.configuration is None and properties.quickgelu is None and choices.quickgelu is None:
        remarks.append("The activation is not stated in the file: GELU is assumed, `quickgelu` sets QuickGELU.")
    if not (properties.mean and properties.std):
        remarks.append("The pixel mean and std are not stated in the file: those of CLIP are assumed.")
    try:
        weights = {name: tensor for name, tensor in state.items() if name not in OPENAI_NUMBERS}
        clip = _complete_clip(weights, spec, None if properties.configuration else properties.text_heads)
    except ValueError as error:
        clip = None
        remarks.append(f"Descriptors cannot be compared with texts. {error}")
    return replace(
        converted,
        clip=clip,
        remarks=tuple(remarks),
        has_pixel_statistics=bool(properties.mean or properties.std),
    )


def _spec(state: Mapping[str, Tensor], choices: Choices, properties: ClipProperties) -> EncoderSpec:
    visual = tower_of(state, "visual.")
    if properties.configuration is None:
        quickgelu = bool(properties.quickgelu if choices.quickgelu is None else choices.quickgelu)
        architecture = tower_architecture(visual, quickgelu=quickgelu, head_width=properties.head_width)
        configuration = named_configuration(architecture)
    else:
        configuration = properties.configuration
        if choices.quickgelu is not None:
            configuration = configuration.with_quick_gelu(choices.quickgelu)
        architecture = name_of(configuration)
    image_size = choices.image_size or configuration.vision.image_size
    if configuration.vision.timm_model_name is None:
        image_size = tower_image_size(visual, choices.image_size)
    mean, std = NORMALIZATIONS["clip"]
    return EncoderSpec(
        family="open_clip",
        architecture=architecture,
        descriptor_dim=configuration.values["embed_dim"],
        image_size=as_height_width(image_size),
        normalized=True if choices.normalized is None else choices.normalized,
        mean=tuple(properties.mean or mean),  # type: ignore[arg-type] # of three colors
        std=tuple(properties.std or std),  # type: ignore[arg-type]
        resize=properties.resize,
        aggregation="token",
        configuration=configuration.to_json(),
    )


def _complete_clip(state: Mapping[str, Tensor], spec: EncoderSpec, text_heads: float | None) -> Mapping[str, Tensor]:
    """Convert all weights of a CLIP for `load_clip`, with the position embedding resized to the architecture's size.

    Raises:
        ValueError: missing keys (such as the text tower), unexpected keys, or another number of attention heads.
    """
    assert spec.configuration is not None
    configuration = ClipConfiguration(spec.configuration)
    clip = empty_clip(configuration, spec.image_size)
    check_fits(state, clip.state_dict(), spec.architecture)
    heads = configuration.text.heads
    if text_heads not in (None, heads):
        raise ValueError(f"Their tower has {text_heads} attention heads, that of {spec.architecture} has {heads}.")
    clip.load_state_dict({name: single_precision(tensor) for name, tensor in state.items()}, assign=True)
    own_size = as_height_width(empty_clip(configuration).visual.image_size)
    resize_input(clip.visual, own_size, "edges")
    return clip.state_dict()
