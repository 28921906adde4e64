"""Files of tensors that are read whole or refused."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from progeo.models.weight_files.unpickler import printable


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU.

    Raises:
        ValueError: the file is broken.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {printable(str(error))}.") from None
