"""Overview that stage 2 logs before it starts: data, groups, parameters and estimated memory."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from progeo.cores import usable_cores
from progeo.data.crops import CROP_DRAWS
from progeo.data.datasets import Unreadable
from progeo.engine.memory import parameter_bytes, trained_before_frozen
from progeo.models.encoder import Encoder
from progeo.models.options import ModelOptions
from progeo.training.batches import Batches
from progeo.training.image_training import ImageTraining
from progeo.training.memory import COPIES_OF_TRAINED, image_memory, state_bytes
from progeo.training.precision import precision_in_words
from progeo.training.starting_encoder import starting_statistics

_IMAGES_TIMED, _TIMED_S = 16, 1.0
"""Number of images that are decoded to measure the time, and the time after which no further one is."""
_MAX_NAMES = 4


def overview(training: ImageTraining, *, model: ModelOptions) -> list[str]:
    """Return the overview as a screenful of lines."""
    options, encoder = training.options, training.encoder
    height, width = training.drawn.crop.size
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in encoder.parameters()) - trained
    beside = sum(p.numel() for p in training.terms.parameters() if p.requires_grad)
    return [
        *training.drawn.summary(),
        f"epochs      {options.epochs:,}, each of {training.steps_per_epoch:,} steps of {options.batch_size:,} "
        f"{training.drawn.unit}, cropped to {height} x {width} pixels",
        f"validation  {training.validation}",
        f"encoder     {model.architecture}: {trained:,} parameters trained, {frozen:,} frozen; descriptors of "
        f"{encoder.descriptor_dim} dimensions; loss terms: {beside:,} parameters",
        f"memory      {_in_words(estimated_memory(training))}",
        f"precision   {precision_in_words(training.accelerator)}",
        *_advice_on_frozen(encoder),
        f"pixels      {starting_statistics(model)}",
        f"decoding    {_decoding(training.drawn)}",
    ]


@dataclass(frozen=True)
class Memory:
    """Estimated memory in bytes."""

    states: int
    """Weights, gradients and optimizer state, on the device of a process."""
    images: int
    """Memory on the device of all images that are computed together."""
    images_at_once: int
    cached: int
    """Decoded images in main memory."""


def estimated_memory(training: ImageTraining) -> Memory:
    """Estimate the memory of a training."""
    options, encoder, terms, accelerator = training.options, training.encoder, training.terms, training.accelerator
    copies = COPIES_OF_TRAINED[options.optimizer]
    states = state_bytes(encoder, options.optimizer)
    if options.ema_decay is not None:
        states += parameter_bytes(encoder)
    if len(options.generations) > 1:
        states += 2 * parameter_bytes(encoder)  # the first weights and the target
    if training.teacher is not None:
        states += parameter_bytes(training.teacher.encoder)
    groups = [terms.modules_of_group(index) for index in range(training.num_groups)]
    states += (1 + copies) * max(sum(map(parameter_bytes, modules)) for modules in groups)
    states += max(sum(buffer.nbytes for module in modules for buffer in module.buffers()) for modules in groups)
    at_once = training.drawn.images_per_step // (accelerator.num_processes * options.micro_batches)
    images = image_memory(encoder, training.drawn.crop.size, accelerator).of(at_once)
    return Memory(states, images, at_once, training.bytes_in_memory)


def _advice_on_frozen(encoder: Encoder) -> list[str]:
    """Return a line that names what is trained before frozen layers, which then cost a backward pass; else none."""
    images = torch.zeros(1, 3, *encoder.image_size, device=encoder.mean.device)
    was_training = encoder.training
    encoder.eval()
    names = trained_before_frozen(lambda: encoder.forward(images), encoder.backbone)
    encoder.train(was_training)
    if not names:
        return []
    listed = f"{', '.join(names[:_MAX_NAMES])}{' ...' if len(names) > _MAX_NAMES else ''}"
    return [
        f"frozen      a gradient passes frozen layers to {listed}: freeze these, too, for faster steps in less memory"
    ]


def _in_words(memory: Memory) -> str:
    states, images, whole, cached = (
        f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.1f} MB"
        for count in (memory.states, memory.images, memory.states + memory.images, memory.cached)
    )
    return (
        f"about {whole} on each process's device: {states} of weights, gradients and optimizer, {images} for "
        f"{memory.images_at_once} images at a time" + (f"; {cached} of images in main memory" if memory.cached else "")
    )


def _decoding(drawn: Batches) -> str:
    workers = drawn.data.num_workers
    several = f"{workers} process{'' if workers == 1 else 'es'} (`data.num_workers`)"
    who = several if workers else "the training process (`data.num_workers` 0)"
    seconds = decoding_seconds(drawn)
    speed = f"{1e3 * seconds:.3g} ms per image, measured; {max(1, workers) / seconds:,.0f} per second at most"
    return f"{who} on {usable_cores()} cores: {speed}"


def decoding_seconds(drawn: Batches) -> float:
    """Measure the time of decoding, cropping and resizing an image, over images from the entire data set."""
    images, draws = drawn.sets[0], np.full(CROP_DRAWS, 0.5)
    seconds: list[float] = []
    for row in np.linspace(0, len(images) - 1, _IMAGES_TIMED).astype(int).tolist():
        start = time.perf_counter()
        image = images[row]
        if not isinstance(image, Unreadable):
            drawn.crop(image, draws)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > _TIMED_S:
            break
    return float(np.median(seconds))  # the first takes longer
