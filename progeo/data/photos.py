"""Photos from anywhere: files, bytes, and images in memory, as uint8 pixels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from progeo.data.datasets import Unreadable
from progeo.data.decode import decode_image, read_image, read_shape
from progeo.image_files import Orientation
from progeo.pixels import orientation_of, pixels_of, swaps_sides

Photo: TypeAlias = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
"""A path, the bytes of an image file, a file opened in binary mode, a PIL image, or the upright pixels of an RGB image:
an array uint8 (H, W, 3) or a tensor uint8 (3, H, W)."""

_IN_MEMORY = bytes | bytearray | memoryview


@dataclass(frozen=True, eq=False)
class PhotoImages(Dataset):
    """The preprocessed pixels of photos."""

    photos: Sequence[Photo]
    preprocess: Callable[[Tensor], Tensor] | None = None
    """Maps uint8 (3, H, W) to uint8 (3, height, width), or several crops; None leaves the image unchanged."""
    orientation: Orientation = "exif"
    """Whether photos are rotated upright, see `pixels_of`."""

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> Tensor | Unreadable:
        """Return the pixels of photo `row`, uint8 (3, height, width), or of its crops (5, 3, s, s)."""
        try:
            image = self.pixels(row)
        except (ValueError, OSError) as error:
            return Unreadable(str(error))
        try:
            return image if self.preprocess is None else self.preprocess(image)
        except ValueError as error:
            return Unreadable(f"The image {self.name(row)} cannot be preprocessed: {error}.")

    def name(self, row: int) -> str:
        """Return the path of a photo, or its number if it is in memory."""
        photo = self.photos[row]
        return str(photo) if isinstance(photo, str | Path) else f"photo {row + 1}"

    def pixels(self, row: int) -> Tensor:
        """Return the upright pixels of a photo in full size, uint8 (3, H, W).

        Raises:
            ValueError: it is not an image, or is truncated.
            FileNotFoundError: the file does not exist.
        """
        photo = self.photos[row]
        if isinstance(photo, str | Path):
            return read_image(Path(photo), self.orientation)
        if isinstance(photo, Tensor):
            return photo
        if isinstance(photo, np.ndarray):
            pixels = np.ascontiguousarray(photo)  # as tensors have no negative strides
            return torch.tensor(pixels).permute(2, 0, 1)  # a copy, as the array may be read-only
        try:
            if isinstance(photo, Image.Image):
                return pixels_of(photo, self.orientation)
            return decode_image(_stream(photo), self.orientation)
        except Exception as error:  # decoders raise many kinds, and Pillow decodes an opened image only now
            raise ValueError(f"The image {self.name(row)} cannot be decoded: {error}.") from None

    def shape(self, row: int) -> tuple[int, int] | None:
        """Return the height and width of `pixels`, decoding as little as possible; None on failure."""
        photo = self.photos[row]
        if isinstance(photo, Tensor):
            return photo.shape[1], photo.shape[2]
        if isinstance(photo, np.ndarray):
            return photo.shape[0], photo.shape[1]
        if isinstance(photo, Image.Image):
            swaps = self.orientation == "exif" and swaps_sides(orientation_of(photo))
            return (photo.width, photo.height) if swaps else (photo.height, photo.width)
        return read_shape(Path(photo) if isinstance(photo, str | Path) else _stream(photo), self.orientation)


def listed_photos(photos: Photo | Iterable[Photo]) -> list[Photo]:
    """List one or several photos.

    Raises:
        ValueError: something is no photo.
    """
    several = list(photos) if isinstance(photos, Iterable) and not _is_one(photos) else [photos]
    for photo in several:
        if not _is_one(photo) or not _has_pixels(photo):
            raise ValueError(
                f"A photo must be a path, the bytes of an image file, a file opened in binary mode, a PIL image, an "
                f"array uint8 (H, W, 3) or a tensor uint8 (3, H, W), got {_kind(photo)}."
            )
    return several  # type: ignore[return-value]


def _is_one(photos: object) -> bool:
    if isinstance(photos, np.ndarray | Tensor):
        return photos.ndim not in (1, 4)  # paths, and a batch
    return isinstance(photos, str | Path | _IN_MEMORY | Image.Image) or hasattr(photos, "read")


def _has_pixels(photo: object) -> bool:
    if isinstance(photo, Tensor):
        return photo.dtype == torch.uint8 and photo.ndim == 3 and photo.shape[0] == 3 and photo.numel() > 0
    if isinstance(photo, np.ndarray):
        return photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and photo.size > 0
    return True


def _kind(photo: object) -> str:
    if isinstance(photo, np.ndarray | Tensor):
        return f"{type(photo).__name__} of {photo.dtype} {tuple(photo.shape)}"
    return type(photo).__name__


def _stream(photo: bytes | bytearray | memoryview | BinaryIO) -> BinaryIO:
    """Return a stream at its beginning, as a photo may be read twice."""
    if isinstance(photo, _IN_MEMORY):
        return BytesIO(photo)
    photo.seek(0)
    return photo
