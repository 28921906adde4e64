"""Estimates of the memory that training an encoder takes on a device."""

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from progeo.engine.accelerator import Processor, autocast
from progeo.engine.memory import parameter_bytes, saved_bytes
from progeo.models.backbones import empty_traits
from progeo.models.backbones.position_embedding import sample_size
from progeo.models.encoder import Encoder, EncoderSpec, empty_encoder, plan_encoder

COPIES_OF_TRAINED = {"adamw": 3, "sgd": 2}
"""Besides the weights themselves: the gradient, and the two moments of Adam or the momentum."""


@dataclass(frozen=True)
class ImageMemory:
    """Memory of images that are computed together, in bytes."""

    first: int
    """Memory of one image, with all that is computed once."""
    each: int
    """Memory of each further image."""

    def of(self, count: int) -> int:
        """Return the memory of `count` images."""
        return self.first + (count - 1) * self.each


def state_bytes(encoder: Encoder, optimizer: str) -> int:
    """Return the size of the weights of an encoder, of their gradients and of the state of an optimizer."""
    return parameter_bytes(encoder) + COPIES_OF_TRAINED[optimizer] * parameter_bytes(encoder, trained_only=True)


def image_memory(encoder: Encoder, size: tuple[int, int], processor: Accelerator | Processor) -> ImageMemory:
    """Measure the memory of images of a height and width in a training step.

    Args:
        encoder: on the device of the processor.
        size: height and width of the crops in pixels.
        processor: the device and precision of training.
    """
    one, two = (_kept_for_gradient(encoder, (count, 3, *size), processor) for count in (1, 2))
    # The bytes of an image, and the floats that jitter and normalization turn them into.
    crop = 3 * math.prod(size) * (1 + 3 * 4)
    return ImageMemory(one + crop, two - one + crop)


def _kept_for_gradient(encoder: Encoder, shape: tuple[int, ...], processor: Accelerator | Processor) -> int:
    """Measure the bytes saved for the backward pass of images of a shape, at the precision of training."""
    images = torch.zeros(shape, device=processor.device)
    was_training = encoder.training
    encoder.eval()  # these must not change the batch-norm statistics
    with autocast(processor):
        kept = saved_bytes(lambda: encoder.forward(images), encoder)
    encoder.train(was_training)
    return kept


def unweighted_encoder(architecture: str) -> Encoder:
    """Build an encoder with the defaults of an architecture on the meta device, without weights.

    Raises:
        ValueError: the architecture is not known.
    """
    plan = plan_encoder(architecture, "random")
    network = plan.network
    return empty_encoder(
        EncoderSpec(
            family=plan.family,
            architecture=network.architecture,
            image_size=sample_size(empty_traits(architecture)),
            descriptor_dim=plan.descriptor_dim,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            aggregation=plan.aggregation,
            aggregation_options=plan.aggregation_options,
            interpolation=network.interpolation,
            configuration=None if network.configuration is None else dict(network.configuration),
        )
    )
