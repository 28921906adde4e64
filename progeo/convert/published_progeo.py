"""Import encoders of published ProGEO: a CLIP's visual tower as `backbone.*`, for a ResNet with CosPlace's head."""

import open_clip

from progeo.convert.clip_towers import features_dim, is_vit, tower_architecture, tower_image_size, tower_of
from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, head_name, tensor_named
from progeo.convert.source import Source
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS

PROGEO_MARKS = ("backbone.class_embedding", "backbone.conv1.weight")
_IMAGE_SIZE = 512
_TEXT = ("text_encoder.", "token_embedding.")


def is_published_progeo(source: Source) -> bool:
    """Return whether a file has a CLIP's visual tower as `backbone.*`."""
    return not {"backbone.class_embedding", "backbone.conv3.weight"}.isdisjoint(source.state)


def read_published_progeo(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of published stage 2, with the pixel statistics, image size and interpolation of its code.

    Its training starts from OpenAI's CLIP with QuickGELU and keeps the text tower frozen, so a ViT's descriptors can be
    compared with text features of `openai` weights.

    Raises:
        ValueError: the visual tower is not known; for further errors see `convert_encoder`.
    """
    state = source.state
    visual = tower_of(state, "backbone.")
    vit = is_vit(visual)
    quickgelu = True if choices.quickgelu is None else choices.quickgelu
    architecture = tower_architecture(visual, quickgelu=quickgelu)
    if vit:
        image_size, dim = tower_image_size(visual, choices.image_size), features_dim(visual)
    else:
        image_size = as_height_width(choices.image_size or _IMAGE_SIZE)
        dim = len(tensor_named(state, "aggregation.3.weight", 2))
    shares_texts = vit and quickgelu and "openai" in open_clip.list_pretrained_tags_by_model(architecture)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family="open_clip",
        architecture=architecture,
        image_size=image_size,
        descriptor_dim=dim,
        normalized=bool(choices.normalized) if vit else True,
        mean=mean,
        std=std,
        interpolation="corners",
        aggregation="token" if vit else "gem",
        text_weights="openai" if shares_texts else None,
    )
    return convert_encoder(
        spec,
        source.found,
        their_name=head_name,
        skipped_prefixes=_TEXT if vit else (*_TEXT, "backbone.attnpool."),
    )
