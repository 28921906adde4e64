"""Benchmark the inference time of one image in PyTorch, torch.compile and onnxruntime.

Run `python -m benchmarks.export`, after `pip install -e '.[onnx]'`. CLIP's RN50 with a GeM and ViT-B/16 with random
weights, one image of 224 px at a time, on two CPU cores. The three alternate; the minimum counts.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from benchmarks.timing import min_seconds
from progeo.export.onnx import save_onnx
from progeo.models.encoder import build_encoder

ARCHITECTURES = ("RN50", "ViT-B-16")
IMAGE_SIDE, NUM_CORES = 224, 2


def main() -> None:
    """Print the results."""
    torch.set_num_threads(NUM_CORES)
    print(f"{'ms an image':12}{'PyTorch':>12}{'compiled':>12}{'onnxruntime':>14}{'ratios':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            print(compare_runtimes(architecture, Path(folder) / f"{architecture}.onnx"))


def compare_runtimes(architecture: str, path: Path) -> str:
    """Format milliseconds per image, and the ratios of PyTorch to the two others."""
    encoder = build_encoder(architecture, "random", IMAGE_SIDE).eval()
    save_onnx(path, encoder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_CORES
    session = onnxruntime.InferenceSession(path, options)
    image = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE)
    with torch.inference_mode():
        seconds = min_seconds(
            [
                partial(encoder, image),
                partial(torch.compile(encoder), image),
                partial(session.run, None, {"images": image.numpy()}),
            ],
            time.perf_counter,
            rounds=30,
        )
    eager, compiled, onnx = (1e3 * value for value in seconds)
    return f"{architecture:12}{eager:12.1f}{compiled:12.1f}{onnx:14.1f}{eager / compiled:8.2f}{eager / onnx:6.2f}"


if __name__ == "__main__":
    main()
