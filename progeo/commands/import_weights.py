"""Import weights of other programs as an encoder, or as prompts of stage 1."""

from pathlib import Path
from typing import Literal

from progeo.image_files import Resize


def import_weights(
    file: Path,
    *,
    out: Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    normalized: bool | None = None,
    quickgelu: bool | None = None,
    weights_in: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    resize: Resize | None = None,
    class_order: Path | None = None,
    head: Literal["arcface", "cosface"] | None = None,
    clip: str | None = None,
    clip_weights: str = "openai",
) -> Path:
    """Convert the weights of another program, write them to a new folder and return the folder.

    Args:
        file: Weights of published ProGEO, CosPlace, EigenPlaces or Divide&Classify; with NetVLAD, of OpenIBL, WAKD, the
            deep visual geo-localization benchmark or pytorch-NetVlad; of DINOv2, SALAD, CliqueMining, MegaLoc, BoQ,
            MixVPR, GSV-Cities, OpenVPRLab, ImAge, SelaVPR++ or EDTformer; or of a CLIP of OpenAI, open_clip or Hugging
            Face, the latter two also as a folder with their configuration; or prompts of published ProGEO's stage 1.
        out: Output folder. null takes the name of the file, with _encoder in place of its suffix.
        image_size: Size in pixels that images are resized to: one side of a square, or height and width. null takes the
            published size; a CLIP or a ViT of published ProGEO takes the size of its position embedding, and no other
            is allowed.
        normalized: L2-normalize the descriptors of an encoder of CLIP's image features or of DINOv2's class token.
            null takes false for a ViT of published ProGEO, otherwise true.
        quickgelu: Use QuickGELU as the activation of a CLIP. null takes that of the file, and GELU if it is unknown.
        weights_in: Entry of the checkpoint that holds the weights, such as ema or state.model_ema. null takes the only
            entry, or if there are several model_state_dict, state_dict or model.
        mean: Pixel mean of red, green and blue in 0..1 that the weights were trained with. Set together with std; null
            takes the published ones.
        std: Pixel std of red, green and blue in 0..1. Set together with mean; null takes the published ones.
        resize: Interpolation by which images are resized, always with antialiasing: bilinear or bicubic. null takes the
            published one; for a CLIP that of the configuration beside its file, bilinear without one.
        class_order: Cache file of the published code with the classes of every group, ending in .torch. With it, a
            checkpoint of CosPlace, ProGEO or Divide&Classify also gives its classifier, for `progeo evaluate --by
            classes`. Prompts without it are imported for reading only.
        head: For class_order: head that the classifiers were trained as, which files do not say. null takes that of the
            arguments in the checkpoint, else the default of the program: arcface for Divide&Classify, else cosface.
        clip: For prompts: architecture of the CLIP they were learned with. Stage 2 can use the prompts only with it and
            class_order. null imports the prompts for reading only.
        clip_weights: For prompts: weights of that CLIP, with the values of model.weights.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the folder is in use, or the file has an unknown format, is refused, corrupt or truncated.
    """
    from progeo.commands.imported_encoder import write_encoder
    from progeo.convert.converted_encoder import Choices
    from progeo.convert.prompt_learners import holds_prompt_learners, prompts_in
    from progeo.convert.published_classes import published_classifier
    from progeo.convert.recognition import open_source, read_encoder
    from progeo.export.classifier import check_fits_encoder
    from progeo.export.encoder_folders import holds_encoder
    from progeo.progress import phase
    from progeo.training.published_prompts import write_published_prompts

    target = out or file.parent / f"{file.stem}_encoder"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in use: name another folder with `out`.")
    if holds_encoder(file):
        raise ValueError(f"{file} holds an encoder of progeo, which needs no import: use it as it is.")
    choices = Choices(image_size, normalized, quickgelu, weights_in, mean, std, resize)
    with phase(f"reading {file.name}"):
        source = open_source(file, choices)
    if not file.is_dir() and holds_prompt_learners(source.content):
        if choices != Choices() or head is not None:
            raise ValueError(
                f"{file} holds prompts; `weights_in`, `image_size`, `normalized`, `quickgelu`, `mean`, `std`, "
                f"`resize` and `head` are for encoders: omit them."
            )
        prompts = prompts_in(source.content, file)
        write_published_prompts(
            prompts, target, file=file, class_order=class_order, clip=clip, clip_weights=clip_weights
        )
        return target
    if clip is not None:
        raise ValueError(f"{file} holds an encoder; `clip` is for prompts: omit it.")
    with phase("converting the weights"):
        converted = read_encoder(source, choices)
    if class_order is None:
        if head is not None:
            raise ValueError("`head` is for the classifiers of a checkpoint: name their classes with `class_order`.")
        write_encoder(converted, file, target)
    else:
        classifier = published_classifier(source.content, file, class_order, program=converted.program, head=head)
        check_fits_encoder(classifier, converted.encoder, file)
        write_encoder(converted, file, target, classifier=classifier)
    return target
