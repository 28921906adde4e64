"""An encoder made of any network, to evaluate it; it cannot be trained, saved or projected."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from progeo.image_files import Resize
from progeo.models.encoder import Encoder
from progeo.models.fingerprint import module_fingerprint
from progeo.models.pixel_statistics import chosen_statistics
from progeo.printable import reason_of_failure


class WrappedEncoder(Encoder):
    """Encoder made of a network that maps normalized images (B, 3, H, W) to descriptors (B, D)."""

    has_weights = False
    descriptor_dim = 0
    image_size = (0, 0)
    resize: Resize = "bilinear"

    def __init__(
        self,
        name: str,
        network: nn.Module,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Wrap a network in eval mode on the CPU, and run it once to find the dimension of its descriptors.

        Args:
            name: name of the encoder in errors.
            network: computes float descriptors (B, D), normalized or not.
            image_size: height and width in pixels.
            mean, std: pixel statistics that the network was trained with; None takes those of ImageNet.

        Raises:
            ValueError: the network fails on images of this size, or does not compute descriptors.
        """
        nn.Module.__init__(self)  # no EncoderSpec describes this network
        pixels = chosen_statistics(None if mean is not None or std is not None else "imagenet", mean, std)
        assert pixels is not None
        self.name, self.network, self.image_size = name, network, image_size
        self.register_buffer("mean", torch.tensor(pixels.mean), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std), persistent=False)
        self.cpu().eval()
        with torch.inference_mode():
            self.descriptor_dim = self(torch.zeros(2, 3, *image_size)).shape[1]

    def fingerprint(self) -> str:
        """Compute a digest that changes with the encoder, see `module_fingerprint`."""
        return module_fingerprint(self)

    def forward(self, images: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        """Compute descriptors (B, D) of normalized images (B, 3, H, W).

        Raises:
            ValueError: the network fails on images of this size, or does not compute descriptors.
        """
        try:
            found = self.network(images)
        except Exception as error:  # code of others can fail in any way
            raise ValueError(
                f"{self.name} fails on {len(images)} images of {images.shape[2]} x {images.shape[3]} pixels: "
                f"{reason_of_failure(error)}"
            ) from error
        if not isinstance(found, Tensor):
            raise ValueError(f"{self.name} must return a tensor of descriptors (B, D), got a {type(found).__name__}.")
        if found.ndim != 2 or len(found) != len(images) or not found.is_floating_point():
            raise ValueError(
                f"{self.name} must return float descriptors (B, D) of B images, got {str(found.dtype)[6:]} "
                f"{tuple(found.shape)} of {len(images)}."
            )
        return found
