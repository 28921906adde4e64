"""Export the encoder of a run to files of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from progeo.config.encoders import ExportSettings
from progeo.engine.log import LOGGER, start_log
from progeo.export.backbone import backbone_usage, save_backbone
from progeo.export.card import save_card, starting_weights
from progeo.export.folders import without_folders
from progeo.export.onnx import save_onnx
from progeo.export.program import save_program, side_step
from progeo.export.weights import encoder_folder, load_encoder, read_encoder_metadata, save_encoder
from progeo.files import written_together
from progeo.models.encoder import Encoder


@dataclass(frozen=True)
class _Format:
    files: tuple[str, ...]
    """Names of the files that the format writes, besides README.md."""
    write: Callable[[Path, Encoder, dict, ExportSettings], str]
    """Writes the files to a folder and returns Python code that loads them."""


def export(settings: ExportSettings) -> Path:
    """Export the encoder of a run in the chosen format and return the output folder.

    Raises:
        ValueError: the folder holds such files already, or a setting does not apply to the format.
    """
    start_log(None)
    if settings.format not in ("onnx", "torch") and settings.input != "normalized":
        raise ValueError(f"--input is for the formats onnx and torch, not for {settings.format}: leave it out.")
    if settings.format != "onnx" and settings.fp16:
        raise ValueError(f"--fp16 is for the format onnx, not for {settings.format}: leave it out.")
    source, chosen = encoder_folder(settings.run), _FORMATS[settings.format]
    default = "export" if settings.format == "safetensors" else f"export_{settings.format}"
    target = settings.to or settings.run / default
    if held := [name for name in (*chosen.files, "README.md") if (target / name).exists()]:
        raise ValueError(f"{target} already holds {', '.join(held)}: name another folder with --to.")
    metadata = read_encoder_metadata(source)
    with written_together(target.resolve()) as folder:
        usage = chosen.write(folder, load_encoder(source), metadata, settings)
        save_card(folder / "README.md", metadata, usage)
        written = sorted(path.name for path in folder.iterdir())
    LOGGER.info("%s written to %s", ", ".join(written), target)
    return target


def _write_weights(target: Path, encoder: Encoder, metadata: dict, _: ExportSettings) -> str:
    provenance = without_folders(metadata["provenance"])
    save_encoder(target, encoder, provenance=provenance, recalls=metadata["recalls"])
    return (
        "import progeo\n"
        "from PIL import Image\n\n"
        f'encoder = progeo.load_encoder("{target.name}")  # or "hf-hub:OWNER/NAME", once it is published there\n'
        'descriptor = encoder(encoder.preprocess(Image.open("photo.jpg"))[None])'
    )


def _write_onnx(target: Path, encoder: Encoder, _: dict, settings: ExportSettings) -> str:
    difference = save_onnx(target / "model.onnx", encoder, input=settings.input, fp16=settings.fp16)
    _report(encoder, difference, settings)
    return (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f'(descriptors,) = session.run(None, {{"images": images}})  # {_images(encoder, settings)}'
    )


def _write_program(target: Path, encoder: Encoder, _: dict, settings: ExportSettings) -> str:
    _report(encoder, save_program(target / "model.pt2", encoder, input=settings.input), settings)
    return (
        "import torch\n"
        "from torch.export.passes import move_to_device_pass\n\n"
        'program = torch.export.load("model.pt2")  # it unpickles: load only files of those whom you trust\n'
        'encoder = move_to_device_pass(program, "cpu").module()  # or "cuda"\n'
        f"descriptors = encoder(images)  # {_images(encoder, settings)}"
    )


def _write_backbone(target: Path, encoder: Encoder, metadata: dict, _: ExportSettings) -> str:
    save_backbone(target / "backbone.safetensors", encoder)
    return backbone_usage(encoder, starting_weights(metadata))


_FORMATS = {
    "safetensors": _Format(("model.safetensors", "model.json"), _write_weights),
    "onnx": _Format(("model.onnx",), _write_onnx),
    "torch": _Format(("model.pt2",), _write_program),
    "backbone": _Format(("backbone.safetensors",), _write_backbone),
}


def _report(encoder: Encoder, difference: float, settings: ExportSettings) -> None:
    LOGGER.info("it takes %s", _images(encoder, settings))
    LOGGER.info("largest difference to the encoder's descriptors, in images of three sizes: %.1e", difference)


def _images(encoder: Encoder, settings: ExportSettings) -> str:
    """Describe the expected input images in words."""
    height, width = encoder.image_size
    step = side_step(encoder)
    sides = "H and W from 64" if step == 1 else f"H and W from 64 and multiples of {step}"
    return {
        "normalized": f"float32 (B, 3, H, W), normalized, {sides}",
        "pixels": f"uint8 RGB (B, H, W, 3), {sides}",
        "photos": f"uint8 RGB (B, H, W, 3) of any size from 64, resized to {height} x {width} inside",
    }[settings.input]
