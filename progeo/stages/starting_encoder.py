"""The encoder that stage 2 starts from: an untrained one, or one that was trained or imported before."""

from pathlib import Path

from progeo.config.training import ModelSettings
from progeo.export.weights import encoder_folder, holds_encoder, load_encoder
from progeo.models.clip import NORMALISATIONS, as_height_width
from progeo.models.encoder import Encoder, build_encoder


def build_starting_encoder(model: ModelSettings, *, seed: int) -> Encoder:
    """The encoder that the settings describe, of their weights or of the folder that `model.weights` names.

    Raises:
        ValueError: the encoder in the folder is not as the settings say; the sentence names the first that differs.
    """
    if holds_encoder(Path(model.weights)):
        return _load_encoder(model, Path(model.weights))
    return build_encoder(
        model.architecture,
        model.weights,
        model.image_size,
        descriptor_dim=model.descriptor_dim,
        normalised=model.normalised,
        normalisation=model.normalisation,
        align_corners=model.align_corners,
        seed=seed,
    )


def _load_encoder(model: ModelSettings, folder: Path) -> Encoder:
    encoder = load_encoder(encoder_folder(folder))
    assert isinstance(encoder, Encoder)
    spec = encoder.spec
    pixels = {tuple(map(tuple, values)): name for name, values in NORMALISATIONS.items()}
    settings = {
        "architecture": (model.architecture.replace("/", "-"), spec.architecture),
        "image_size": (as_height_width(model.image_size), spec.image_size),
        "descriptor_dim": (model.descriptor_dim or spec.descriptor_dim, spec.descriptor_dim),
        "normalised": (model.normalised or spec.pooling != "clip", spec.normalised),
        "normalisation": (model.normalisation, pixels.get((spec.mean, spec.std), (spec.mean, spec.std))),
        "align_corners": (model.align_corners, spec.align_corners),
    }
    for name, (wanted, found) in settings.items():
        if wanted != found:
            raise ValueError(f"model.{name} is {wanted}, the encoder in {folder} has {found}: set it so.")
    return encoder
