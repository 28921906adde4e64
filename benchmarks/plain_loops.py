"""Two training loops of stage 2 without progeo: the published one, and one as an expert would write it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import io, transforms
from torchvision.models import resnet18
from torchvision.transforms import v2

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
COLORS = {"brightness": 0.7, "contrast": 0.7, "saturation": 0.7, "hue": 0.5}
CROP_SCALE = (0.5, 1)
DESCRIPTOR_DIM = 512
ENCODER_LEARNING_RATE, HEAD_LEARNING_RATE = 1e-5, 1e-2


class Loop(ABC):
    """A training loop whose parts can be timed: decoding, then augmentation up to the encoder's input, then the step.

    Attributes:
        encoder: the network that gets augmented images.
    """

    encoder: nn.Module

    @abstractmethod
    def decode(self) -> Any:
        """Decode the images of a batch in this process."""

    @abstractmethod
    def train(self, decoded: Any) -> None:
        """Augment a batch and take a step on it."""

    @abstractmethod
    def run_epoch(self) -> None:
        """Train on all batches of an epoch, decoded by worker processes."""


class PlainLoop(Loop):
    """A loop of PyTorch alone, by CosFace.

    Args:
        paths: images, each of a class of its own; a multiple of `batch_size`.
        encoder: maps normalized images (B, 3, H, W) to descriptors.
        input_side: side of the encoder's images in pixels.
        batch_size: images in a step.
        steps: steps in an epoch.
        device: where it trains.
        autocast: runs the encoder and the classifier in bfloat16.
        num_workers: processes that decode.
    """

    memory_format = torch.contiguous_format

    def __init__(
        self,
        paths: Sequence[Path],
        encoder: nn.Module,
        *,
        input_side: int,
        batch_size: int,
        steps: int,
        device: torch.device,
        autocast: bool,
        num_workers: int,
    ) -> None:
        self.images, self.batch_size, self.steps = PlainImages(paths, self.read), batch_size, steps
        self.device, self.autocast, self.num_workers = device, autocast, num_workers
        self.encoder = encoder.train().to(device, memory_format=self.memory_format)
        self.head = CosFace(len(paths)).to(device)
        self.crop_size = (input_side, input_side)
        self.next_images = 0
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        groups = [
            {"params": trained, "lr": ENCODER_LEARNING_RATE},
            {"params": self.head.parameters(), "lr": HEAD_LEARNING_RATE},
        ]
        self.optimizer = self.build_optimizer(groups)

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Decode an image."""

    @abstractmethod
    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimizer of the encoder and the classifier."""

    def decode(self) -> tuple[list[Tensor], Tensor]:
        """Decode the images of the next batch in this process, and return them with their labels."""
        first = self.next_images
        self.next_images = (first + self.batch_size) % len(self.images)
        images, labels = zip(*(self.images[row] for row in range(first, first + self.batch_size)), strict=True)
        return list(images), torch.tensor(labels)

    def loader(self, images: Dataset, collate: Callable | None = None) -> DataLoader:
        """Build a loader of random images for the steps of an epoch."""
        return DataLoader(
            images,
            self.batch_size,
            sampler=RandomSampler(images, num_samples=self.steps * self.batch_size),
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of normalized images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.head(self.encoder(images), labels)
            return F.cross_entropy(logits, labels)


class PublishedLoop(PlainLoop):
    """The published loop: decode to floats, jitter and crop image by image on the device, train with plain Adam."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.to_tensor = transforms.ToTensor()
        super().__init__(*args, **options)
        self.jitter = transforms.ColorJitter(**COLORS)
        self.crop = transforms.RandomResizedCrop(self.crop_size, scale=CROP_SCALE)
        self.normalize = transforms.Normalize(**IMAGENET)

    def read(self, path: Path) -> Tensor:
        """Decode an image to floats."""
        return self.to_tensor(Image.open(path).convert("RGB"))

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build plain Adam."""
        return torch.optim.Adam(groups)

    def train(self, decoded: tuple[Sequence[Tensor], Tensor]) -> None:
        """Augment a batch and take a step on it, which reads the loss."""
        images, labels = decoded
        jittered = torch.stack([self.jitter(image.to(self.device)) for image in images])
        normalized = self.normalize(torch.stack([self.crop(image) for image in jittered]))
        self.optimizer.zero_grad()
        loss = self.loss(normalized, labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        loss.item()

    def run_epoch(self) -> None:
        """Train on random images."""
        for images, labels in self.loader(self.images):
            self.train((images, labels))


class ExpertLoop(PlainLoop):
    """An expert's loop: transforms of uint8 tensors in the workers, channels last, fused AdamW, nothing waits."""

    memory_format = torch.channels_last

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(self.crop_size, scale=CROP_SCALE, antialias=True),
                v2.ColorJitter(**COLORS),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(**IMAGENET),
            ]
        )

    def read(self, path: Path) -> Tensor:
        """Decode an image to uint8."""
        return io.decode_image(io.read_file(str(path)), io.ImageReadMode.RGB)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build fused AdamW."""
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    def train(self, decoded: tuple[list[Tensor], Tensor]) -> None:
        """Augment a batch as the workers do, and take a step on it."""
        images, labels = decoded
        transformed = map(self.transform, images)
        self.take_step(*self.collate(list(zip(transformed, labels, strict=True))))

    def collate(self, items: Sequence[tuple[Tensor, int | Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack images to channels last."""
        images, labels = zip(*items, strict=True)
        return torch.stack(images).contiguous(memory_format=self.memory_format), torch.tensor(labels)

    def take_step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step without waiting for the device."""
        images, labels = (values.to(self.device, non_blocking=True) for values in (images, labels))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(images, labels).backward()
        self.optimizer.step()

    def run_epoch(self) -> None:
        """Train on random images."""
        images = PlainImages(self.images.paths, lambda path: self.transform(self.read(path)))
        for batch in self.loader(images, self.collate):
            self.take_step(*batch)


class PlainImages(Dataset):
    """Images, each with its number as its label.

    Args:
        paths: the images.
        read: reads one.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(self.paths[index]), index


class CosFace(nn.Module):
    """Cosine classifier with a margin of 0.4 and a scale of 30 (Wang et al., CVPR 2018, eq. 4)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, DESCRIPTOR_DIM)))

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Compute logits (B, C) of descriptors (B, D)."""
        cosines = F.linear(F.normalize(descriptors), F.normalize(self.weight))
        margins = torch.zeros_like(cosines).scatter_(1, labels[:, None], 0.4)
        return 30 * (cosines - margins)


class GeMResNet18(nn.Module):
    """ResNet-18 frozen up to layer2, with GeM, a linear layer and unit length (CosPlace, section 4.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet18().children())[:-2])
        self.backbone[:6].requires_grad_(False)  # all layers before layer3
        self.power = nn.Parameter(torch.tensor(3.0))
        self.linear = nn.Linear(512, DESCRIPTOR_DIM)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D)."""
        features = F.normalize(self.backbone(images), dim=1).clamp(min=1e-6)
        pooled = F.adaptive_avg_pool2d(features.pow(self.power), 1).pow(1 / self.power)
        return F.normalize(self.linear(pooled.flatten(1)), dim=1)


def published_vit() -> nn.Module:
    """Build the image tower of a CLIP ViT-B/32 of open_clip with its first half frozen.

    As published, its embeddings are trained, so that the gradient passes through the frozen blocks.
    """
    tower = VisionTransformer(224, 32, width=768, layers=12, heads=12, mlp_ratio=4, output_dim=DESCRIPTOR_DIM)
    for part in (tower.conv1, tower.ln_pre, *tower.transformer.resblocks[:6]):
        part.requires_grad_(False)
    return tower


def expert_vit() -> nn.Module:
    """Build the same tower of timm, whose attention is faster than that of open_clip."""
    tower = timm.create_model("vit_base_patch32_clip_224", num_classes=DESCRIPTOR_DIM)
    for part in (tower.patch_embed, tower.norm_pre, *tower.blocks[:6]):
        part.requires_grad_(False)
    return tower
