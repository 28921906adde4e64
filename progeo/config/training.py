"""Settings of stage 1 and stage 2 of training."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)

from progeo.data.augmentation import Augmentation
from progeo.engine.options import Precision, Tracker
from progeo.engine.run_folder import Keep
from progeo.engine.schedules import Schedule
from progeo.image_files import Orientation
from progeo.models.batch_norm import BatchNormMode
from progeo.models.heads import HeadKind
from progeo.models.options import Preprocessing


@dataclass(frozen=True)
class DataSettings:
    """Training, validation and test images, and how they are read."""

    train_folder: Path
    """Folder of training images. <folder>_images_paths.txt next to it may list them."""
    val_folder: Path
    """Folder that holds the database and the queries of the validation."""
    database: str = "database"
    """Name of the database folder inside val_folder."""
    queries: str = "queries"
    """Name of the query folder inside val_folder."""
    val_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of images in validation and in the final test. hard_resize resizes to model.image_size and ignores
    the aspect ratio; single_query resizes the shorter side to the shorter side of model.image_size and keeps the aspect
    ratio; central_crop resizes to cover model.image_size and crops the center; five_crops averages the descriptors of
    five square crops; native keeps images as they are, as published CosPlace does."""
    test_folder: Path | None = None
    """Folder that holds the database and the queries of a final test. At the end of stage 2 the kept encoder is
    evaluated on it as by `progeo evaluate`, with the results in test/ of the run. null skips the final test."""
    test_queries: str | None = None
    """Name of the query folder inside test_folder, such as queries_v1. null takes the value of queries."""
    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Cache folder for the descriptors of the final test, as of `progeo evaluate`."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is a positive (a correct match)."""
    positive_angle_deg: PositiveFloat | None = None
    """Maximum heading difference in degrees between a query and its positives, in addition to positive_radius_m. null
    ignores headings."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Number of processes that decode images."""
    eval_batch_size: PositiveInt = 64
    """Number of images per batch for extracting features, where nothing is trained."""
    orientation: Orientation = "exif"
    """Orientation of photos. exif rotates photos upright by their EXIF orientation; ignore takes the pixels as stored,
    as most published code does."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Maximum fraction of unreadable images, from 0 to 1; at least one is allowed. Stage 1 skips unreadable images and
    stage 2 replaces them by another image of the class; above this fraction both stop. 0 allows none."""
    cache_images: bool = False
    """Keep decoded training images in memory, at 3 bytes per pixel of the files. Fast for a small set; every image must
    be readable."""


@dataclass(frozen=True)
class CellSettings:
    """Division of the map into classes and groups (CosPlace)."""

    cell_side_m: PositiveInt = 10
    """Side of a cell in meters, M in the paper."""
    heading_bin_deg: int = 30
    """Width of a heading bin in degrees, alpha in the paper. Use 360 for images without heading."""
    groups_per_side: PositiveInt = 5
    """Spacing of the cells of a group along east and north, in cells; N in the paper."""
    groups_per_heading: PositiveInt = 2
    """Spacing of the headings of a group, in heading bins; L in the paper."""
    min_images_per_class: PositiveInt = 10
    """Minimum number of images per class. Classes with fewer images are excluded."""
    num_groups: PositiveInt = 8
    """Number of groups to train on. Epoch e of stage 2 trains on group e modulo this number."""


@dataclass(frozen=True)
class ModelSettings:
    """Model that training starts from: a CLIP for both stages, and the encoder built from its image tower."""

    architecture: str = "RN50"
    """Architecture of the model: RN50, RN101, ViT-B-16, ViT-B-32 or another CLIP of open_clip, or tiny-resnet and
    tiny-vit for quick tests. Without text also vgg16, resnet18, resnet50, resnet101, resnet152 or efficientnet_b0 to
    efficientnet_b7 of torchvision."""
    weights: str = "openai"
    """Pretrained weights: a tag of open_clip or torchvision (IMAGENET1K_V1, DEFAULT), hf-hub:owner/name of a CLIP, a
    local file, or random. Stage 2 also takes the folder of a trained or imported encoder."""
    image_size: int | tuple[int, int] = 512
    """Size in pixels that stage 2 resizes crops to: one side of a square, or height and width."""
    descriptor_dim: int | None = None
    """Dimension of the descriptors. null takes the dimension of CLIP's features or the channels of a torchvision
    backbone; a ViT allows no other."""
    normalized: bool = True
    """L2-normalize a ViT's descriptors; all other encoders always do."""
    normalization: Literal["clip", "imagenet"] | None = None
    """Pixel mean and std to normalize images with: clip or imagenet. null takes the statistics of the pretrained
    weights; if they are not recorded or the weights are random, those of CLIP, or of ImageNet for a torchvision
    backbone."""
    mean: tuple[float, float, float] | None = None
    """Pixel mean of red, green and blue in 0..1, such as [0.5, 0.5, 0.5]. Set together with std, instead of
    normalization; null uses normalization."""
    std: tuple[float, float, float] | None = None
    """Pixel std of red, green and blue in 0..1. Set together with mean, instead of normalization; null uses
    normalization."""
    align_corners: bool = False
    """Interpolate position embeddings with align_corners, as the published code does."""
    frozen: tuple[str, ...] = ()
    """Layers of the backbone that stage 2 freezes, such as conv1, transformer.resblocks.0 or features.0."""


@dataclass(frozen=True)
class PromptSettings:
    """Stage 1: learning text prompts."""

    template: str = "A photo of a {} street."
    """Template of the prompt. {} stands for the learned context vectors."""
    context_length: PositiveInt = 4
    """Number of learned context vectors per class."""
    image_size: int | tuple[int, int] = 224
    """Size in pixels of the images whose features stage 1 extracts: one side of a square, or height and width."""
    epochs: PositiveInt = 60
    """Number of epochs for each group."""
    batch_size: PositiveInt = 512
    """Number of images per batch."""
    learning_rate: PositiveFloat = 1e-2
    """Initial learning rate of Adam. It decays to zero along a cosine."""
    temperature: PositiveFloat = 1.0
    """Temperature that divides the dot products of the contrastive loss."""
    normalized: bool = False
    """L2-normalize image and text features before the loss. The published method uses raw features."""
    batch_norm: BatchNormMode = "calibrated"
    """Batch-norm statistics while image features are extracted. eval takes the running statistics of the weights;
    calibrated does too, except for weights that were never trained on images, which take the statistics of one pass
    over at most 4,096 of the images; batch takes the statistics of each batch of data.eval_batch_size random images, as
    the published code does."""
    feature_cache: Path = Path("runs/feature_cache")
    """Cache folder for image features, which later runs reuse."""


@dataclass(frozen=True)
class HeadSettings:
    """Stage 2: the margin classifier over the classes of a group."""

    kind: HeadKind = "cosface"
    """Classifier head: cosface, arcface, or linear without a margin."""
    scale: PositiveFloat = 30.0
    """Scale that multiplies the cosines."""
    margin: NonNegativeFloat = 0.4
    """Margin of the correct class: a cosine for cosface, radians for arcface."""
    weight: NonNegativeFloat = 1.0
    """Weight of the classification loss. 0 disables the loss."""


@dataclass(frozen=True)
class TextSettings:
    """Stage 2: the image-text loss."""

    weight: NonNegativeFloat = 1.0
    """Weight of the image-text loss. 0 trains without text, and needs no prompts."""
    label_smoothing: ClosedUnitInterval = 0.1
    """Fraction of the target probability distributed evenly over all classes."""
    normalized: bool = False
    """L2-normalize descriptors and text features before the loss. The published method uses raw features."""
    temperature: PositiveFloat = 1.0
    """Temperature that divides the dot products. 0.07 is common for normalized features."""
    learn_temperature: bool = False
    """Train the temperature, starting from this value, with head_learning_rate and a minimum of 0.01."""
    prompts: Path | None = None
    """Folder of the prompts that stage 1 learned. null takes stage1 of this run."""


@dataclass(frozen=True)
class TripletSettings:
    """Stage 2: the triplet loss between the images of a batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the triplet loss. 0 disables the loss; above 0, training.images_per_class must be at least 2."""
    kind: Literal["softmax_weighted", "batch_hard"] = "softmax_weighted"
    """Mining of triplets: softmax_weighted weights all pairs of the batch by how hard they are; batch_hard takes the
    hardest positive and the hardest negative of each image."""
    margin: NonNegativeFloat | None = None
    """Margin of batch_hard, a Euclidean distance. null uses the soft margin."""


@dataclass(frozen=True)
class TrainingSettings:
    """Stage 2: training the image encoder."""

    epochs: PositiveInt = 64
    """Number of epochs. Each trains on one group and ends with a validation."""
    iterations_per_epoch: PositiveInt = 10_000
    """Number of batches per epoch."""
    batch_size: PositiveInt = 32
    """Number of images per batch, over all processes."""
    images_per_class: PositiveInt = 1
    """K of P x K sampling: number of different images of the same class in a batch, as far as the class has them."""
    micro_batches: PositiveInt = 1
    """Number of micro-batches that a process splits its images of a batch into. More of them use less memory for the
    same gradient, except with batch norm, whose statistics are those of a micro-batch. Several processes exchange
    gradients after each micro-batch."""
    gradient_checkpointing: bool = False
    """Recompute the activations of a ViT's blocks in the backward pass instead of storing them, which uses less
    memory."""
    compile: bool = False
    """Compile the encoder with torch.compile: minutes at the start, faster steps."""
    encoder_learning_rate: PositiveFloat = 1e-5
    """Learning rate of AdamW for the encoder."""
    head_learning_rate: PositiveFloat = 1e-2
    """Learning rate of AdamW for the parts that are not exported: the classifiers, and the projection from descriptors
    to text features."""
    schedule: Schedule = "constant"
    """Schedule of the learning rates: constant, or cosine, which decays to zero over all epochs."""
    warmup_steps: NonNegativeInt = 0
    """Number of warmup steps, over which the learning rates rise at the start. 0 starts at the full rates."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the encoder's matrices and kernels. Norms and biases never decay."""
    ema_decay: OpenUnitInterval | None = None
    """Decay of an exponential moving average of the encoder's weights over the steps, such as 0.999. The averaged
    encoder is validated and kept. null uses the weights themselves."""
    max_gradient_norm: PositiveFloat | None = None
    """Maximum L2 norm of the gradient, to which it is clipped. null does not clip."""
    skip_not_finite: bool = False
    """Skip and count a step whose loss or gradient is not finite, instead of stopping."""
    patience: PositiveInt | None = None
    """Number of epochs without a better validation R@1 after which training stops early. The R@1 before training does
    not count. null trains all epochs."""
    keep: Keep = "best"
    """Encoder to keep: best keeps the epoch with the highest validation R@1 in best/; last keeps the last epoch in
    last/. The encoder before training is never kept."""
    keep_every: PositiveInt | None = None
    """Also keep the encoder after every this many epochs, in a folder of epochs/. null keeps none of them."""
    checkpoint_every: PositiveInt = 1000
    """Number of steps between checkpoints within an epoch. There is always one at the end of an epoch."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep. Older ones are removed; encoders are never removed."""


@dataclass(frozen=True)
class Settings:
    """Settings of stage 1 and stage 2."""

    run: Path
    """Folder of the run. Stage 1 writes to its stage1/, stage 2 to its stage2/."""
    data: DataSettings
    seed: int = 0
    """Seed of all random choices, from 0 to 2**64 - 1."""
    resume: bool = False
    """Resume the run in the run folder from its newest checkpoint; without a checkpoint, start from scratch. If false,
    a folder that holds a run is refused."""
    mixed_precision: Precision = "no"
    """Precision of the networks in training and feature extraction."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that log stage 2: tensorboard, wandb, or both. A resumed run is a new one in wandb."""
    cells: CellSettings = field(default_factory=CellSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    text: TextSettings = field(default_factory=TextSettings)
    triplet: TripletSettings = field(default_factory=TripletSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, got {self.seed}.")
        if self.prompts.batch_norm == "batch" and self.data.eval_batch_size == 1:
            raise ValueError(
                "data.eval_batch_size must be at least 2 where prompts.batch_norm is batch, got 1: an image alone has "
                "no statistics of a batch. Use for example 64."
            )
