"""From a file to pixels."""

from pathlib import Path

from torch import Tensor
from torchvision.io import ImageReadMode, decode_image


def read_image(path: Path) -> Tensor:
    """Decode a JPEG or PNG file to uint8 RGB (3, H, W), turned upright by its EXIF orientation.

    Raises:
        ValueError: a file that is no image, or only the beginning of one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(f"The image {path} cannot be decoded: {str(error).splitlines()[0]}") from None
