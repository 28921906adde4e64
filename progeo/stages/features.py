"""Image features of the frozen CLIP model, extracted once and kept on disk for every later run."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP
from torch.utils.data import DataLoader
from tqdm import tqdm

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_ordered_loader, read_batches
from progeo.engine.log import LOGGER
from progeo.files import replacing, write_json
from progeo.models.clip import NORMALISATIONS, as_height_width
from progeo.models.preprocessing import normalise_images, resize_image
from progeo.places.catalogue import Catalogue

_FEATURES = "features.npy"
_DESCRIPTION = "features.json"


def cached_features(
    clip: CLIP,
    catalogue: Catalogue,
    cache: Path,
    accelerator: Accelerator,
    *,
    normalisation: str,
    batch_size: int,
    num_workers: int,
) -> np.ndarray:
    """Features of every image of a catalogue, float16 (N, E), mapped from the disk.

    They lie in a folder of `cache` named after all they depend on: the weights of the visual tower, the image size,
    the normalisation and the list of images. What is there already is not computed again.

    Args:
        clip: on the accelerator's device, in eval mode.
        catalogue: N images.
        cache: folder of all cached features.
        accelerator: gives device and precision.
        normalisation: `clip` or `imagenet`.
        batch_size: images a batch.
        num_workers: processes that decode images.
    """
    image_size = as_height_width(clip.visual.image_size)
    depends_on = {
        "visual_weights": _digest_of_weights(clip.visual),
        "image_size": image_size,
        "normalisation": normalisation,
        "mixed_precision": accelerator.mixed_precision,
        "images": _digest_of_images(catalogue),
    }
    folder = cache / hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    if (folder / _FEATURES).is_file():
        LOGGER.info("image features of %d images found in %s", len(catalogue), folder)
    elif accelerator.is_main_process:
        loader = build_ordered_loader(
            CatalogueImages(catalogue, partial(resize_image, size=image_size)),
            batch_size=batch_size,
            num_workers=num_workers,
        )
        _extract(clip, loader, len(catalogue), normalisation, folder / _FEATURES, accelerator)
        catalogue.save(folder / "catalogue.arrow")
        write_json(folder / _DESCRIPTION, {"folder": str(catalogue.folder), **depends_on})
        LOGGER.info("image features of %d images written to %s", len(catalogue), folder)
    accelerator.wait_for_everyone()
    return np.load(folder / _FEATURES, mmap_mode="r")


@torch.inference_mode()
def _extract(
    clip: CLIP, loader: DataLoader, count: int, normalisation: str, path: Path, accelerator: Accelerator
) -> None:
    mean, std = (torch.tensor(values, device=accelerator.device) for values in NORMALISATIONS[normalisation])
    with replacing(path) as temporary, tqdm(total=count, desc="image features", unit="img", disable=None) as bar:
        shape = (count, clip.text_projection.shape[1])
        features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        done = 0
        for images in read_batches(loader):
            with accelerator.autocast():
                batch = clip.encode_image(normalise_images(images.to(accelerator.device), mean, std))
            features[done : done + len(images)] = batch.float().cpu().numpy()
            done += len(images)
            bar.update(len(images))
        features.flush()


def _digest_of_weights(visual: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in visual.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.cpu().contiguous().view(torch.uint8).numpy() if tensor.ndim else str(tensor.item()).encode()
        )
    return digest.hexdigest()


def _digest_of_images(catalogue: Catalogue) -> str:
    digest = hashlib.sha256(str(catalogue.folder.resolve()).encode())
    for path in catalogue.table["path"].to_pylist():
        digest.update(path.encode() + b"\n")
    return digest.hexdigest()
