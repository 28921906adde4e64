"""The teacher that an encoder is distilled from: a frozen encoder, run in every step or once before."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from progeo.data.options import DataOptions
from progeo.export.encoder_folders import encoder_folder
from progeo.export.weights import load_encoder, read_encoder_metadata
from progeo.features.descriptors import descriptor_metadata
from progeo.features.store import Rows
from progeo.models.aggregation import find_aggregation
from progeo.models.encoder import Encoder
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import Catalogue
from progeo.training.image_descriptors import ImageDescriptors, extract_image_descriptors
from progeo.training.options import TeacherOptions


def teacher_given(options: TeacherOptions) -> dict[str, str]:
    """Return what the teacher gives loss terms, see `check_needs`, before its weights are loaded.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no encoder.
    """
    if options.encoder is None:
        advice = "name the folder of an encoder as `teacher.encoder`"
        return {"teacher": advice, "teacher_map": advice}
    aggregation = read_encoder_metadata(encoder_folder(options.encoder))["encoder"]["aggregation"]
    map_advice = ""
    if options.features == "cache":
        map_advice = "set `teacher.features` to step, a cache has descriptors only"
    elif "map" not in find_aggregation(aggregation).needs:
        map_advice = f"the teacher has the aggregation {aggregation}, which leaves the map out"
    return {"teacher": "", "teacher_map": map_advice}


class Teacher:
    """A frozen encoder in eval mode, with its own image size, interpolation and pixel statistics.

    Args:
        options: its folder, and when it runs.
        accelerator: gives precision, device and processes.

    Raises:
        FileNotFoundError, ValueError: there is no such encoder.
    """

    def __init__(self, options: TeacherOptions, accelerator: Accelerator) -> None:
        assert options.encoder is not None  # or there is no teacher
        self.options, self.accelerator = options, accelerator
        self.encoder: Encoder = load_encoder(encoder_folder(options.encoder)).to(accelerator.device)
        self.encoder.requires_grad_(False).eval()
        self.cached: ImageDescriptors | Rows | None = None

    @property
    def descriptor_dim(self) -> int:
        """Dimension E of its descriptors."""
        return self.encoder.descriptor_dim

    @property
    def digest(self) -> str:
        """Digest of all that its descriptors depend on: its weights, image size, pixel mean and std ..."""
        return hashlib.sha256(json.dumps(descriptor_metadata(self.encoder), sort_keys=True).encode()).hexdigest()

    def prepare(self, catalogues: Sequence[Catalogue], data: DataOptions) -> None:
        """Extract the descriptors of all training images into the cache, if the options say so."""
        if self.options.features != "cache":
            return
        cache = self.options.descriptor_cache
        self.cached = extract_image_descriptors(self.encoder, catalogues, self.accelerator, data=data, cache=cache)

    @property
    def is_cached(self) -> bool:
        """Whether its descriptors were extracted before, so that it does not run in a step."""
        return self.cached is not None

    def of_rows(self, rows: Tensor) -> Tensor:
        """Read the cached descriptors (b, E) of training images, given their rows int64 (b,), all on the CPU."""
        assert self.cached is not None  # `is_cached`
        return torch.from_numpy(self.cached.take(rows.numpy()))

    @torch.no_grad()
    def __call__(self, images: Tensor, *, with_map: bool) -> Mapping[str, Tensor]:
        """Compute the descriptors (b, E) as `teacher` and, if asked for, the feature map as `teacher_map`.

        Args:
            images: augmented images on the device, floats in 0..1, (b, 3, H, W).
        """
        sized = self.encoder.normalize(resize_image(images, self.encoder.image_size, self.encoder.resize))
        if not with_map:
            return {"teacher": self.encoder(sized)}
        descriptors, features = self.encoder(sized, with_features=True)
        return {"teacher": descriptors, "teacher_map": features.map}
