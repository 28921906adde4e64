"""An exported ONNX file as an encoder, to evaluate it beside the encoder that it was exported from."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from progeo.export.onnx import open_session
from progeo.models.encoder import spec_from_json
from progeo.models.wrapped_encoder import WrappedEncoder
from progeo.printable import first_line


def load_onnx_encoder(name: str) -> WrappedEncoder:
    """Load `model.onnx`, or another file that `progeo export --format onnx` wrote, by its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: onnxruntime is missing, cannot open the file, or the file is none of progeo.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    try:
        network = _OnnxNetwork(content)
    except ModuleNotFoundError:
        raise ValueError("An ONNX file needs the package onnxruntime: pip install 'progeo[onnx]'.") from None
    except Exception as error:  # onnxruntime raises many kinds
        raise ValueError(f"{path} cannot be opened by onnxruntime: {first_line(error, 'it is corrupt')}.") from None
    try:
        described = json.loads(network.session.get_modelmeta().custom_metadata_map["progeo"])
        network.takes_pixels = described.pop("input") != "normalized"
        spec = spec_from_json(described)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = first_line(error, type(error).__name__).rstrip(".")
        raise ValueError(f"{path} is not an ONNX file as progeo exports it: {reason}.") from None
    network.register_buffer("mean", 255 * torch.tensor(spec.mean)[:, None, None])
    network.register_buffer("std", 255 * torch.tensor(spec.std)[:, None, None])
    encoder = WrappedEncoder(f"onnx:{name}", network, spec.image_size, mean=spec.mean, std=spec.std)
    encoder.resize = spec.resize
    return encoder


class _OnnxNetwork(nn.Module):
    """Runs an ONNX file on the CPU: normalized images (B, 3, H, W) -> descriptors (B, D)."""

    mean: Tensor
    std: Tensor
    takes_pixels = False
    """Whether the file takes uint8 images (B, H, W, 3), which it normalizes."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content, self.session = content, open_session(content)

    def __getstate__(self) -> dict[str, object]:
        """Return what the network is made of, for machines of a cluster and fingerprints."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Open the session of a network that was sent."""
        super().__setstate__(state)
        self.session = open_session(self.content)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors one by one, as ranges of `int8` dynamic are those of all images of a batch."""
        given = images
        if self.takes_pixels:
            given = (images * self.std + self.mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        each = (image[None].contiguous().numpy() for image in given.cpu())
        found = [self.session.run(["descriptors"], {"images": image})[0] for image in each]
        return torch.from_numpy(np.concatenate(found)).to(images.device)
