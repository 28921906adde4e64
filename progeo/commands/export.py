"""Export the encoder of a run to files of its own."""

from pathlib import Path
from typing import Literal


def export(
    encoder: Path,
    *,
    out: Path | None = None,
    format: Literal["safetensors", "onnx", "torch", "backbone"] = "safetensors",
    input: Literal["normalized", "pixels", "photos"] = "normalized",
    fp16: bool = False,
) -> Path:
    """Export an encoder in the chosen format, with its classifier, and return the output folder.

    Args:
        encoder: Folder of a run, or of an encoder.
        out: Output folder. null writes to export/ in the folder, or to export_FORMAT/ for another format than
            safetensors.
        format: Output format. safetensors is for progeo.load_encoder, torch.hub and the Hugging Face Hub; onnx for
            onnxruntime and others; torch is a torch.export program; backbone is the backbone alone, with the parameter
            names of its library.
        input: Input of an onnx or torch export. normalized takes normalized images, float (B, 3, H, W); pixels takes
            uint8 images (B, H, W, 3) and normalizes them; photos takes uint8 images and also resizes them to the
            encoder's image size.
        fp16: Store the weights of an onnx export in half precision, which halves the file size. Computation stays in
            float32.

    Raises:
        ValueError: the folder holds such files already, or an option does not apply to the format.
    """
    from progeo.export.formats import ExportOptions, export_encoder

    if format not in ("onnx", "torch") and input != "normalized":
        raise ValueError(f"`input` is for the formats onnx and torch, not for {format}: leave it out.")
    if format != "onnx" and fp16:
        raise ValueError(f"`fp16` is for the format onnx, not for {format}: leave it out.")
    out = out or encoder / ("export" if format == "safetensors" else f"export_{format}")
    export_encoder(encoder, out, format, ExportOptions(input=input, fp16=fp16))
    return out
