"""Benchmark stage 1: text and image features compared with the plain implementation, and memory for a large city.

Run `python -m benchmarks.stage1`. Text features: the text towers of CLIP, SigLIP and CoCa, each against its own
`encode_text` on the full context of every prompt; on a CPU one thread and process CPU time, on a GPU wall time; both
implementations alternate, and the minimum of several rounds counts. Image features: wall time, as decoding and encoding
overlap. Memory: the peak of a process of its own that trains on 35,000 classes and 700,000 images.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.images import write_images
from benchmarks.timing import clock_of_one_core, min_seconds
from progeo.data.options import DataOptions
from progeo.engine.accelerator import fits_device, start_accelerator
from progeo.engine.checkpoint import save_checkpoint
from progeo.engine.loop import take_steps
from progeo.features.cache import Cache
from progeo.features.clip_features import cached_features
from progeo.features.store import ShardedRows
from progeo.models.backbones.clip_configurations import ClipConfiguration, named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.pixel_statistics import NORMALIZATIONS, pixel_statistics
from progeo.models.prompts import PromptLearner
from progeo.models.text_towers.tokenizers import VOCABULARY
from progeo.models.text_towers.tower import TextTower, build_text_tower
from progeo.places.catalogue import read_catalogue
from progeo.training.options import PromptOptions
from progeo.training.prompt_group import GroupImages, GroupTraining

ARCHITECTURE, DIMENSION = "ViT-B-32", 512
TEXT_TOWERS = ("ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32")
TEXTS = 64
IMAGES, IMAGE_SIDE, BATCH_SIZE = 256, 512, 64
NUM_CLASSES, NUM_FEATURES, NUM_STEPS = 35_000, 700_000, 8


def main() -> None:
    """Print the results of all three benchmarks."""
    with tempfile.TemporaryDirectory() as folder:
        print(compare_text_features())
        print(compare_image_features(Path(folder)))
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(process.apply(train_large_group, (Path(folder),)))


def compare_text_features() -> str:
    """Compare the time of forward and backward passes of the plain implementation and of ours."""
    accelerator = start_accelerator("no")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    title = f"a batch of {TEXTS} with"
    lines = [f"{title:30}{'tokens':>10}{'plain, ms':>12}{'ours, ms':>12}{'ratio':>8}{'prompts/s':>12}"]
    for architecture in TEXT_TOWERS:
        tower = random_tower(architecture, accelerator)
        learner = PromptLearner(tower, TEXTS, generator=torch.Generator().manual_seed(0)).to(accelerator.device)
        plain = plain_learner(tower, learner)
        tokens = f"{learner.encoders[0].tokens_computed}/{tower.context_length}"
        for num_classes in (TEXTS, TEXTS // 2):
            labels = (torch.arange(TEXTS) % num_classes).to(accelerator.device)
            torch.testing.assert_close(learner(labels), plain(labels), rtol=1e-3, atol=1e-3)
            seconds = min_seconds(
                [lambda each=each, labels=labels: each(labels).sum().backward() for each in (plain, learner)],
                clock_of_one_core(accelerator),
                rounds=6,
            )
            name = f"{num_classes} classes, {architecture}"
            times = "".join(f"{each * 1e3:12.1f}" for each in seconds)
            lines.append(f"{name:30}{tokens:>10}{times}{seconds[0] / seconds[1]:8.1f}{TEXTS / seconds[1]:12.0f}")
    torch.set_num_threads(threads)
    return "\n".join(lines)


def random_tower(architecture: str, accelerator: Accelerator) -> TextTower:
    """Build a text tower of random weights; one of another vocabulary with that of CLIP, to download no tokenizer."""
    values = named_configuration(architecture).values
    text = {**values["text_cfg"], "vocab_size": VOCABULARY, "hf_tokenizer_name": None}
    configuration = ClipConfiguration({**values, "text_cfg": text})
    clip = load_clip(architecture, "random", configuration=configuration)
    return build_text_tower(clip.requires_grad_(False).to(accelerator.device))


def plain_learner(tower: TextTower, learner: PromptLearner) -> Callable[[Tensor], Tensor]:
    """Return a function that computes text features as the published code does: all tokens of every label's prompt."""
    full = TextTower(tower.clip, tower.tokenizer, output_dim=tower.output_dim, needed_only=False)
    encoder = full.prompts(tower.tokenizer.sequence(("A photo of a ", learner.context.shape[1], " street.")))
    return lambda labels: encoder(learner.context[labels])


def compare_image_features(folder: Path) -> str:
    """Compare the images per second that are extracted into a feature cache with those of the plain loop."""
    write_images(folder, IMAGES, IMAGE_SIDE)
    catalogue = read_catalogue(folder)
    accelerator = start_accelerator("fp16" if torch.cuda.is_available() else "no")
    clip = load_clip(ARCHITECTURE, "random").requires_grad_(False).to(accelerator.device)

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:
            features = cached_features(
                clip,
                catalogue,
                Cache(Path(cache), "float16", "feature_cache"),
                accelerator,
                architecture=ARCHITECTURE,
                pixels=pixel_statistics(ARCHITECTURE, "random"),
                batch_size=BATCH_SIZE,
                num_workers=DataOptions(train_folder=folder).num_workers,
                max_unreadable_fraction=0,
            )
            return features.rows.take(np.arange(IMAGES))

    def plain() -> np.ndarray:
        return plain_image_features(clip, [catalogue.path(row) for row in range(IMAGES)], accelerator)

    a, b = (torch.from_numpy(values).float() for values in (plain(), ours()))
    plain_seconds, our_seconds = min_seconds([plain, ours], time.perf_counter, rounds=2)
    return (
        f"image features of {IMAGES} JPEGs of {IMAGE_SIDE} px: plain {IMAGES / plain_seconds:.1f} images/s, ours "
        f"{IMAGES / our_seconds:.1f} images/s, ratio {plain_seconds / our_seconds:.2f}; "
        f"least cosine between the two {torch.cosine_similarity(a, b).min():.5f}"
    )


@torch.inference_mode()
def plain_image_features(clip: CLIP, paths: list[Path], accelerator: Accelerator) -> np.ndarray:
    """Decode, transform and encode in batches, one after the other, in full precision."""
    transform = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(*NORMALIZATIONS["clip"])]
    )
    batches = []
    for start in range(0, len(paths), BATCH_SIZE):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH_SIZE]]
        batches.append(clip.encode_image(torch.stack(images).to(accelerator.device)).cpu().numpy())
    return np.concatenate(batches)


def train_large_group(folder: Path) -> str:
    """Train a few steps of a group of a large city, write its checkpoint, and report the peak memory."""
    accelerator = start_accelerator("no")
    libraries = peak_memory(accelerator)
    clip = load_clip(ARCHITECTURE, "random").requires_grad_(False).to(accelerator.device)
    features = ShardedRows(folder / "large", num_rows=NUM_FEATURES, width=DIMENSION, shard_size=8192)
    rng = np.random.default_rng(0)
    for shard in features.missing_shards():
        values = rng.random((len(features.shard_rows(shard)), DIMENSION), np.float32)
        features.write_shard(shard, values.astype(np.float16))
    rows = np.arange(NUM_FEATURES)
    on_device = fits_device(2 * DIMENSION * NUM_FEATURES, accelerator)
    images = GroupImages(features, rows, labels=rows % NUM_CLASSES, accelerator=accelerator, on_device=on_device)
    prompts = PromptOptions()
    tower = build_text_tower(clip)
    training = GroupTraining(
        0, NUM_CLASSES, images=images, tower=tower, prompts=prompts, seed=0, accelerator=accelerator
    )
    batches = training.batches(0, first_step=0)[:NUM_STEPS]
    start = time.perf_counter()
    list(take_steps(batches, training.losses, training.optimizer, accelerator))
    seconds = (time.perf_counter() - start) / NUM_STEPS
    save_checkpoint(folder / "checkpoints", "epoch_000001_step_000000", training.state_dict())
    held = sum(tensor.nbytes for tensor in clip.state_dict().values()) + 3 * training.learner.context.nbytes
    peak = peak_memory(accelerator)
    return (
        f"a group of {NUM_CLASSES} classes and {NUM_FEATURES} features of {DIMENSION} dimensions, batches of "
        f"{prompts.batch_size}: {seconds:.2f} s a step; peak memory {peak / 1e9:.2f} GB, "
        f"{(peak - held) / 1e9:.2f} GB beyond model and optimizer ({held / 1e9:.2f} GB), "
        f"{libraries / 1e9:.2f} GB of that the libraries"
    )


def peak_memory(accelerator: Accelerator) -> int:
    """Return the peak memory in bytes: of a GPU if there is one, else of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
