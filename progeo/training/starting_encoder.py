"""The encoder that stage 2 starts from: an untrained one, or one that was trained or imported before."""

import dataclasses
from pathlib import Path

from progeo.engine.run_folder import RunFolder
from progeo.export.encoder_folders import encoder_folder, holds_encoder
from progeo.export.weights import load_encoder, read_encoder_metadata
from progeo.models.aggregation import find_aggregation
from progeo.models.backbones import FAMILIES, find_family, freeze_layers
from progeo.models.backbones.clip_configurations import ClipConfiguration, named_configuration, own_spelling
from progeo.models.backbones.clips import weights_anywhere
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.clip_files import read_clip_file
from progeo.models.encoder import Encoder, EncoderSpec, build_encoder, plan_encoder
from progeo.models.options import EncoderOptions, ModelOptions
from progeo.models.pixel_statistics import NORMALIZATIONS, PixelStatistics, chosen_statistics, pixel_statistics
from progeo.models.state_dicts import weights_digest
from progeo.training.prompt_files import ClipOfPrompts, load_clip_of_prompts


def build_starting_encoder(model: ModelOptions, options: EncoderOptions, *, seed: int) -> Encoder:
    """Build the encoder from pretrained weights, or load it from the folder `model.weights`; freeze layers.

    Raises:
        ValueError: the encoder in the folder differs from the options; the message names the first difference.
    """
    if starts_from_encoder(model):
        encoder = _load_encoder(model, options, Path(model.weights))
    else:
        encoder = _build_encoder(model, options, seed)
    freeze_layers(encoder.backbone, options.frozen)
    return encoder


def _build_encoder(model: ModelOptions, options: EncoderOptions, seed: int) -> Encoder:
    return build_encoder(
        model.architecture,
        model.weights,
        options.image_size,
        descriptor_dim=options.descriptor_dim,
        normalized=options.normalized,
        normalization=model.normalization,
        mean=model.mean,
        std=model.std,
        resize=model.resize,
        aggregation=options.aggregation,
        aggregation_options=options.aggregation_options,
        interpolation="corners" if model.align_corners else None,
        seed=seed,
    )


def check_starting_encoder(model: ModelOptions, options: EncoderOptions) -> None:
    """Check the options of an encoder that starts from a pretrained backbone, without its weights.

    Raises:
        ValueError: they do not fit the backbone, see `plan_encoder`, or it has no layer that is to be frozen.
    """
    if starts_from_encoder(model):
        return
    plan = plan_encoder(
        model.architecture,
        model.weights,
        options.image_size,
        descriptor_dim=options.descriptor_dim,
        aggregation=options.aggregation,
        aggregation_options=options.aggregation_options,
    )
    if options.frozen:
        freeze_layers(FAMILIES[plan.family].empty(plan.network), options.frozen)


def keep_text_weights(encoder: Encoder, prompts: Path | None, text_dim: int = 0) -> None:
    """Keep the CLIP whose texts an encoder shares only if the prompts it is trained with are of the same CLIP.

    Args:
        encoder: the encoder, whose spec changes.
        prompts: folder of the prompts; None trains without text.
        text_dim: dimension of their text features.

    Raises:
        ValueError: the encoder is of another CLIP than the prompts, and no map between the two spaces is learned.
    """
    spec = encoder.spec
    if prompts is not None and spec.family == "open_clip" and spec.descriptor_dim == text_dim:
        clip = load_clip_of_prompts(prompts)
        theirs = weights_anywhere(clip.architecture, clip.weights)
        has_same = spec.text_weights is not None and Path(theirs).resolve() == Path(spec.text_weights).resolve()
        _check_same_clip(spec, clip, prompts, has_same_weights=has_same)
        if has_same:
            return
    encoder.spec = dataclasses.replace(spec, text_weights=None)


def _check_same_clip(spec: EncoderSpec, clip: ClipOfPrompts, prompts: Path, *, has_same_weights: bool) -> None:
    """Refuse prompts of another CLIP, whose text features have the same dimension but another meaning."""
    if spec.configuration is None:
        configuration = named_configuration(spec.architecture)
    else:
        configuration = ClipConfiguration(spec.configuration)
    ours, theirs = configuration.feature_settings(), clip.configuration.feature_settings()
    different = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    both = (spec.text_weights, weights_anywhere(clip.architecture, clip.weights))
    tags = {weights for weights in both if weights is not None and not Path(weights).is_absolute()}
    if not different and len(tags) < 2 and (has_same_weights or not _has_other_words(spec, clip)):
        return
    why = f"{different[0]} is {theirs.get(different[0])} and {ours.get(different[0])}" if different else "their weights"
    raise ValueError(
        f"The prompts in {prompts} are of the CLIP {clip}, the encoder of {spec.architecture} is of another "
        f"(they differ in {why}): name prompts of the same CLIP with `text.prompts`, or give `encoder.descriptor_dim` "
        f"another value, so that a map between them is learned."
    )


def _has_other_words(spec: EncoderSpec, clip: ClipOfPrompts) -> bool:
    """Return whether the file of an encoder's texts has another token embedding than the CLIP of prompts."""
    if spec.text_weights is None or not Path(spec.text_weights).is_absolute():
        return False
    state, _ = read_clip_file(Path(spec.text_weights))
    names = ("token_embedding.weight", "text.token_embedding.weight")
    found = next((state[name].float() for name in names if name in state), None)
    return found is not None and weights_digest({"token_embedding": found}) != clip.vocabulary


def starting_statistics(model: ModelOptions) -> PixelStatistics:
    """Return the pixel statistics and interpolation of both stages, for weights that are available locally."""
    if starts_from_encoder(model):
        encoder = read_encoder_metadata(encoder_folder(Path(model.weights)))["encoder"]
        source, resize = f"as the encoder in {model.weights} has", encoder.get("resize", "bilinear")
        return PixelStatistics(tuple(encoder["mean"]), tuple(encoder["std"]), source, resize)
    return pixel_statistics(
        model.architecture,
        model.weights,
        normalization=model.normalization,
        mean=model.mean,
        std=model.std,
        resize=model.resize,
    )


def starting_aggregation(model: ModelOptions, options: EncoderOptions) -> str:
    """Return the aggregation of the encoder that `build_starting_encoder` builds, before weights are loaded."""
    if starts_from_encoder(model):
        return read_encoder_metadata(encoder_folder(Path(model.weights)))["encoder"]["aggregation"]
    family, architecture = find_family(model.architecture)
    return options.aggregation or FAMILIES[family].default_aggregation(architecture)


def starts_from_encoder(model: ModelOptions) -> bool:
    """Return whether `model.weights` is the folder of an encoder, or of a run that should hold one."""
    folder = Path(model.weights)
    return holds_encoder(folder) or any(RunFolder(folder / part).config.is_file() for part in ("", "stage1", "stage2"))


def _load_encoder(model: ModelOptions, options: EncoderOptions, folder: Path) -> Encoder:
    encoder = load_encoder(encoder_folder(folder))
    spec = encoder.spec
    family, architecture = find_family(model.architecture)
    aggregation = options.aggregation or spec.aggregation
    settings: dict[str, tuple[object, object]] = {
        "architecture": (f"{family}/{own_spelling(architecture)}", f"{spec.family}/{spec.architecture}"),
        "image_size": (as_height_width(options.image_size), spec.image_size),
        "descriptor_dim": (options.descriptor_dim or spec.descriptor_dim, spec.descriptor_dim),
        "normalized": (options.normalized or find_aggregation(aggregation).always_normalized, spec.normalized),
        "aggregation": (aggregation, spec.aggregation),
        "aggregation_options": (spec.aggregation_options | options.aggregation_options, spec.aggregation_options),
        "resize": (model.resize or spec.resize, spec.resize),
        "align_corners": (model.align_corners, spec.interpolation == "corners"),
    }
    for name, (wanted, found) in settings.items():
        if wanted != found:
            raise ValueError(f"`{name}` is {wanted}, the encoder in {folder} has {found}: set it so.")
    _check_statistics(model, spec, folder)
    return encoder


def _check_statistics(model: ModelOptions, spec: EncoderSpec, folder: Path) -> None:
    wanted = chosen_statistics(model.normalization, model.mean, model.std)
    if wanted is None or (wanted.mean, wanted.std) == (spec.mean, spec.std):
        return
    if model.mean is not None:
        raise ValueError(
            f"`mean` and `std` are {wanted.mean} and {wanted.std}, the encoder in {folder} has {spec.mean} and "
            f"{spec.std}: leave both out."
        )
    names = {statistics: name for name, statistics in NORMALIZATIONS.items()}
    found = names.get((spec.mean, spec.std))
    has = f"{found}: set it so" if found else f"mean {spec.mean} and std {spec.std}: leave it out"
    raise ValueError(f"`normalization` is {model.normalization}, the encoder in {folder} has {has}.")
