"""Which backbones, image sizes and batch sizes can be trained in the memory of a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from progeo.engine.memory import without_values
from progeo.engine.options import Precision
from progeo.models.encoder import Encoder
from progeo.training.memory import image_memory, state_bytes, unweighted_encoder

_OPTIMIZER = "adamw"
"""That of training by default."""


@dataclass(frozen=True)
class Fit:
    """Memory of training a backbone at one image size, estimated as the overview of a training does."""

    architecture: str
    image_size: int
    """Side of square crops in pixels."""
    bytes_by_batch: dict[int, int]
    """Memory of weights, optimizer and images, for each batch size."""
    max_batch: int
    """The largest batch that fits into the free memory; 0 if none does."""


def list_fits(
    architectures: Sequence[str],
    *,
    image_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    free_bytes: int,
    mixed_precision: Precision,
) -> Iterator[Fit]:
    """Estimate the memory of training each of these encoders, with their default aggregation and optimizer.

    Args:
        architectures: see `find_family`.
        image_sizes: sides in pixels; a network with patches takes the nearest multiple of their side.
        batch_sizes: numbers of images that are computed together.
        free_bytes: memory of the device.
        mixed_precision: precision of training.

    Raises:
        ValueError: an architecture is not known, or takes no images of these sizes.
    """
    for architecture in architectures:
        encoder = unweighted_encoder(architecture)
        states = state_bytes(encoder, _OPTIMIZER)
        with without_values(encoder, mixed_precision) as processor:
            for side in dict.fromkeys(_accepted(encoder, side) for side in image_sizes):
                images = image_memory(encoder, (side, side), processor)
                fitting = 1 + (free_bytes - states - images.first) // images.each
                by_batch = {count: states + images.of(count) for count in batch_sizes}
                yield Fit(architecture, side, by_batch, max(0, fitting))


def _accepted(encoder: Encoder, side: int) -> int:
    """Return the side that an encoder takes and that is nearest to a wanted one."""
    if encoder.traits.only_size is not None:
        return encoder.traits.only_size[0]
    step = encoder.traits.side_multiple
    return max(1, round(side / step)) * step
