"""Find the places of a place index that match a sentence."""

from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

from progeo.engine.log import LOGGER
from progeo.localization.localizations import Localization
from progeo.localization.localize import localizations_of
from progeo.localization.place_index import PlaceIndex
from progeo.models.backbones.clip_configurations import HUB, parse_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import EncoderSpec
from progeo.models.text_towers.tokenizers import configuration_with_tokenizer, load_tokenizer
from progeo.models.text_towers.tower import tower_with
from progeo.printable import printable


def localize_text(index: PlaceIndex, text: str, *, top: int = 5) -> Localization:
    """Find the images that match a sentence; the result has no confidence, which is calibrated on photos only.

    Raises:
        ValueError: see `text_descriptor`.
    """
    neighbors = index.search(text_descriptor(index.encoder.spec, text), min_count=top)
    (result,) = localizations_of(index, [text], neighbors, top=top, confidences=np.full(1, np.nan))
    return result


@torch.inference_mode()
def text_descriptor(spec: EncoderSpec, text: str) -> np.ndarray:
    """Encode a sentence in the descriptor space of an encoder, with unit length, float32 (1, D).

    Raises:
        ValueError: the encoder does not share CLIP's text space, or texts of its CLIP cannot be read right.
    """
    if spec.text_weights is None or not spec.normalized:
        raise ValueError(
            f"The descriptors of this encoder ({spec.architecture}, aggregation {spec.aggregation}) cannot be compared "
            f"with texts: that needs L2-normalized descriptors in CLIP's own space, such as those of a ViT of CLIP."
        )
    is_known = spec.text_weights in open_clip.list_pretrained_tags_by_model(spec.architecture)
    if not (is_known or spec.text_weights.startswith(HUB) or Path(spec.text_weights).is_absolute()):
        raise ValueError(
            f"`text` cannot be encoded: the encoder names the weights {printable(spec.text_weights)}, which are no tag "
            f"of {spec.architecture}."
        )
    if "/" in spec.text_weights:  # a file or an address, which may be a stranger's choice
        LOGGER.info("texts are encoded with the weights %s, as the encoder says", spec.text_weights)
    try:
        recorded = None if spec.configuration is None else parse_configuration(spec.configuration, "the encoder")
        configuration = configuration_with_tokenizer(recorded, spec.architecture, spec.text_weights)
        tokenizer = load_tokenizer(configuration)
        clip = load_clip(spec.architecture, spec.text_weights, configuration=configuration)
        tower = tower_with(clip, tokenizer)
    except ValueError as error:
        raise ValueError(f"`text` cannot be encoded as texts of {spec.architecture} are: {error}") from None
    if (num_tokens := tokenizer.num_tokens(text)) > tokenizer.context_length:
        LOGGER.warning("the text has %d tokens; only the first %d are read", num_tokens, tokenizer.context_length)
    return F.normalize(tower.encode([text]), dim=1).numpy()
