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
    int8: Literal["dynamic", "static"] | None = None,
    calibration_folder: Path | None = None,
    data_license: str | None = None,
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
        int8: Quantize an onnx export to integers of 8 bits, a quarter of the size: static for convolutional networks,
            dynamic for ViT. The file is compared with the float one on photos, and refused if its descriptors differ
            much. null does not.
        calibration_folder: Folder of at least 20 photos like those that the int8 file will get. Half of them calibrate
            it, if static, the others are compared.
        data_license: License of the training images, for the model card and model.json. null takes that of an exported
            encoder, or `data.license` of its training; without either it is unknown.

    Raises:
        ValueError: the folder holds such files already, or an option does not apply to the format.
    """
    from progeo.export.formats import ExportOptions, export_encoder

    if format not in ("onnx", "torch") and input != "normalized":
        raise ValueError(f"`input` is for the formats onnx and torch, not for {format}: leave it out.")
    if format != "onnx" and fp16:
        raise ValueError(f"`fp16` is for the format onnx, not for {format}: leave it out.")
    if format != "onnx" and int8:
        raise ValueError(f"`int8` is for the format onnx, not for {format}: leave it out.")
    if fp16 and int8:
        raise ValueError("`fp16` and `int8` exclude each other: leave one out.")
    if bool(int8) != bool(calibration_folder):
        raise ValueError("`int8` needs `calibration_folder`, with photos to compare on, and nothing else does.")
    options = ExportOptions(
        input=input, fp16=fp16, int8=int8, calibration_folder=calibration_folder, data_license=data_license
    )
    out = out or encoder / ("export" if format == "safetensors" else f"export_{format}")
    export_encoder(encoder, out, format, options)
    return out
