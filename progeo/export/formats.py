"""Formats that an encoder is exported in: one table of them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save_file

from progeo.atomic import replacing, written_together
from progeo.engine.log import LOGGER
from progeo.export.card import card_facts, save_card, starting_weights
from progeo.export.classifier import check_fits_encoder, classifier_of, holds_classifier, write_classifier
from progeo.export.encoder_folders import CLASSIFIER, METADATA, encoder_folder
from progeo.export.folders import without_folders
from progeo.export.int8 import Int8, save_int8
from progeo.export.onnx import save_onnx
from progeo.export.program import Input, min_side, save_program, side_step
from progeo.export.weights import encoder_of, metadata_of, save_encoder
from progeo.file_sets import FileSet, read_set
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder, sized_state, spec_to_json
from progeo.progress import phase


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    input: Input = "normalized"
    fp16: bool = False
    int8: Int8 | None = None
    calibration_folder: Path | None = None
    data_license: str | None = None


@dataclass(frozen=True)
class SavedEncoder:
    """One version of the files of an encoder."""

    metadata: dict[str, Any]
    encoder: Encoder
    classifier: Classifier | None

    @cached_property
    def facts(self) -> dict[str, str]:
        """Facts for its card and `model.json`, see `card_facts`."""
        return card_facts(self.metadata, self.encoder)


@dataclass(frozen=True)
class Written:
    """What a card says about written files."""

    usage: str
    """Python code that loads them."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """Rows of its table."""


@dataclass(frozen=True)
class Format:
    """A format of exported encoders."""

    files: tuple[str, ...]
    """Names of the files that the format writes, besides README.md and the classifier."""
    write: Callable[[Path, SavedEncoder, ExportOptions], Written]
    """Writes the files to a folder."""
    gives_descriptors: bool = True
    """Whether the files compute descriptors, which a classifier is for."""


def export_encoder(path: Path, target: Path, format: str, options: ExportOptions) -> None:
    """Export the encoder of a run or of a folder to `target`, with its classifier and a README.md on how to load it.

    Raises:
        ValueError: the folder holds such files already, or the classifier is that of another encoder.
    """
    source, chosen = encoder_folder(path), FORMATS[format]
    with_classifier = chosen.gives_descriptors and holds_classifier(source)
    files = (*chosen.files, *([CLASSIFIER] if with_classifier else []), "README.md")
    with written_together(target.resolve(), files) as folder:
        read = partial(_read, with_classifier=with_classifier, data_license=options.data_license)
        saved = read_set(source / METADATA, read)
        if saved.classifier is not None:
            check_fits_encoder(saved.classifier, saved.encoder, source)
        with phase(f"exporting to {format}"):
            about = chosen.write(folder, saved, options)
        if saved.classifier is not None and not (folder / CLASSIFIER).exists():
            with replacing(folder / CLASSIFIER) as temporary:
                write_classifier(saved.classifier, temporary)
        size = sum((folder / name).stat().st_size for name in chosen.files)
        facts = {**saved.facts, "size of the files": f"{size / 1e6:.1f} MB", **about.measured}
        save_card(folder / "README.md", saved.metadata, about.usage, saved.classifier, facts)
        written = sorted(each.name for each in folder.iterdir())
    LOGGER.info("%s written to %s", ", ".join(written), target)


def _read(files: FileSet, *, with_classifier: bool, data_license: str | None) -> SavedEncoder:
    encoder, metadata = encoder_of(files), metadata_of(files)
    if data_license is not None:
        metadata = {**metadata, "provenance": {**metadata["provenance"], "data_license": data_license}}
    encoder.spec = replace(encoder.spec, **without_folders({"architecture": encoder.spec.architecture}))
    described = {**spec_to_json(encoder.spec), **metadata["encoder"]}  # files of earlier versions lack fields
    return SavedEncoder({**metadata, "encoder": described}, encoder, classifier_of(files) if with_classifier else None)


def _write_weights(target: Path, saved: SavedEncoder, _: ExportOptions) -> Written:
    provenance, recalls = without_folders(saved.metadata["provenance"]), saved.metadata["recalls"]
    save_encoder(
        target,
        saved.encoder,
        provenance=provenance,
        recalls=recalls,
        classifier=saved.classifier,
        card=saved.facts,
    )
    return Written(
        "import progeo\n"
        "from PIL import Image\n\n"
        f'encoder = progeo.load_encoder("{target.name}")  # or "hf-hub:OWNER/NAME", once it is published there\n'
        'descriptor = encoder(encoder.preprocess(Image.open("photo.jpg"))[None])'
    )


def _write_onnx(target: Path, saved: SavedEncoder, options: ExportOptions) -> Written:
    encoder, path, measured = saved.encoder, target / "model.onnx", {}
    if options.int8 is None:
        _report(encoder, save_onnx(path, encoder, input=options.input, fp16=options.fp16), options)
    else:
        assert options.calibration_folder is not None  # as the command checks
        report = save_int8(path, encoder, options.calibration_folder, method=options.int8, input=options.input)
        LOGGER.info("it takes %s", _images(encoder, options))
        LOGGER.info("8-bit integers, %s", report)
        measured = {"8-bit integers": str(report)}
    return Written(
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f'(descriptors,) = session.run(None, {{"images": images}})  # {_images(encoder, options)}',
        measured,
    )


def _write_program(target: Path, saved: SavedEncoder, options: ExportOptions) -> Written:
    encoder = saved.encoder
    _report(encoder, save_program(target / "model.pt2", encoder, input=options.input), options)
    return Written(
        "import torch\n"
        "from torch.export.passes import move_to_device_pass\n\n"
        'program = torch.export.load("model.pt2")  # it unpickles: load only files of those whom you trust\n'
        'encoder = move_to_device_pass(program, "cpu").module()  # or "cuda"\n'
        f"descriptors = encoder(images)  # {_images(encoder, options)}"
    )


def _write_backbone(target: Path, saved: SavedEncoder, _: ExportOptions) -> Written:
    encoder = saved.encoder
    spec, family = encoder.spec, encoder.family
    weights = starting_weights(saved.metadata)
    usage = family.usage(spec.architecture, spec.image_size, weights, spec.configuration)
    state = {f"{family.prefix}{name}": tensor.contiguous() for name, tensor in sized_state(encoder).items()}
    with replacing(target / "backbone.safetensors") as temporary:
        save_file(state, temporary)
    return Written(usage)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "safetensors": Format(("model.safetensors", "model.json"), _write_weights),
        "onnx": Format(("model.onnx",), _write_onnx),
        "torch": Format(("model.pt2",), _write_program),
        "backbone": Format(("backbone.safetensors",), _write_backbone, gives_descriptors=False),
    }
)


def _report(encoder: Encoder, difference: float, options: ExportOptions) -> None:
    LOGGER.info("it takes %s", _images(encoder, options))
    LOGGER.info("largest difference to the encoder's descriptors, in images of three sizes: %.1e", difference)


def _images(encoder: Encoder, options: ExportOptions) -> str:
    """Return the format of the input images in words."""
    height, width = encoder.image_size
    step = side_step(encoder)
    sides = f"H and W from {min_side(encoder)}{'' if step == 1 else f' and multiples of {step}'}"
    return {
        "normalized": f"float32 (B, 3, H, W), normalized, {sides}",
        "pixels": f"uint8 RGB (B, H, W, 3), {sides}",
        "photos": f"uint8 RGB (B, H, W, 3) of any size from 64, resized to {height} x {width} inside, {encoder.resize}",
    }[options.input]
