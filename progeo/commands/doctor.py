"""Show what this machine has, what is missing, and which trainings fit into its memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from progeo.engine.options import Precision

if TYPE_CHECKING:
    from progeo.doctor.diagnosis import Diagnosis, Gpus
    from progeo.doctor.fits import Fit
    from progeo.engine.devices import Device

_BACKBONES = (
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "RN50",
    "ViT-B-16",
    "timm/vit_base_patch14_dinov2",
)


def doctor(
    *,
    backbones: tuple[str, ...] = _BACKBONES,
    image_sizes: tuple[PositiveInt, ...] = (224, 320, 512),
    batch_sizes: tuple[PositiveInt, ...] = (16, 32, 64, 128),
    mixed_precision: Precision = "no",
    network: bool = True,
) -> "Diagnosis":
    """Examine the installation and the machine; nothing is written, and servers are only asked whether they are there.

    Args:
        backbones: Architectures whose memory in training is estimated, with their default aggregation and AdamW. []
            estimates none, which takes the least time.
        image_sizes: Sides of square crops in pixels; a network with patches takes the nearest multiple of their side.
        batch_sizes: Numbers of images that go through the network together.
        mixed_precision: Precision of training.
        network: Ask the servers of pretrained weights whether they can be reached, which takes 3 seconds at most.

    Raises:
        ProblemsError: something that every command needs is missing or broken.
        ValueError: an architecture is not known, or takes none of the image sizes.
    """
    import platform

    from progeo import __version__
    from progeo.doctor.diagnosis import Diagnosis
    from progeo.doctor.disks import list_disks
    from progeo.doctor.hubs import HubCheck, known_hubs
    from progeo.doctor.packages import import_failures, list_extras, problems_of, required_packages
    from progeo.unwritten import ProblemsError

    check = HubCheck(known_hubs() if network else {})  # servers answer while libraries are imported
    packages, failures = required_packages(), import_failures()
    devices: list[Device] = []
    gpus: Gpus | None = None
    fits: list[Fit] = []
    if not failures:
        devices, gpus = _devices()
        fits = _fits(backbones, image_sizes, batch_sizes, devices[0], mixed_precision)
    diagnosis = Diagnosis(
        progeo=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        extras=list_extras(),
        devices=devices,
        gpus=gpus,
        disks=list_disks(_places(with_weights=not failures)),
        hubs=check.results(),
        mixed_precision=mixed_precision,
        fits=fits,
        problems=problems_of(packages, failures),
    )
    if diagnosis.problems:
        raise ProblemsError(" ".join(diagnosis.problems), diagnosis)
    return diagnosis


def _devices() -> "tuple[list[Device], Gpus]":
    import faiss

    from progeo.doctor.diagnosis import Gpus
    from progeo.engine.devices import built_for, list_devices

    has_code = hasattr(faiss, "StandardGpuResources")
    return list_devices(), Gpus(built_for(), faiss.get_num_gpus() if has_code else None)


def _fits(
    backbones: Sequence[str],
    image_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    device: "Device",
    mixed_precision: Precision,
) -> "list[Fit]":
    from progeo.doctor.fits import list_fits

    return list(
        list_fits(
            backbones,
            image_sizes=image_sizes,
            batch_sizes=batch_sizes,
            free_bytes=device.free_bytes,
            mixed_precision=mixed_precision,
        )
    )


def _places(*, with_weights: bool) -> dict[str, Path]:
    """Return where commands write if they are not told otherwise, by what it is for."""
    import tempfile

    from progeo.doctor.disks import SHARED_MEMORY
    from progeo.features.options import CacheOptions
    from progeo.training.options import PromptOptions

    places = {
        "this folder": Path.cwd(),
        "descriptor cache": CacheOptions().descriptor_cache,
        "feature cache": PromptOptions().feature_cache,
        "temporary files": Path(tempfile.gettempdir()),
    }
    if SHARED_MEMORY.is_dir():
        places["memory shared by workers"] = SHARED_MEMORY
    if with_weights:
        import torch
        from huggingface_hub.constants import HF_HUB_CACHE

        places |= {"weights of PyTorch": Path(torch.hub.get_dir()), "weights of Hugging Face": Path(HF_HUB_CACHE)}
    return places
