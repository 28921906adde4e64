"""Settings of training: the two stages."""

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
from progeo.engine.accelerator import Precision, Tracker
from progeo.engine.run_folder import Keep
from progeo.engine.schedules import Schedule
from progeo.models.batch_norm import BatchNormMode
from progeo.models.heads import HeadKind
from progeo.models.preprocessing import Preprocessing
from progeo.pixels import Orientation


@dataclass(frozen=True)
class DataSettings:
    """Where the images are and how they are read."""

    train_folder: Path
    """Folder of training images; `<folder>_images_paths.txt` beside it may list them."""
    val_folder: Path
    """Folder with the database and the queries of validation."""
    database: str = "database"
    """Name of the database's folder in val_folder."""
    queries: str = "queries"
    """Name of the queries' folder in val_folder."""
    val_preprocessing: Preprocessing = "hard_resize"
    """Of validation and of the final test: hard_resize to model.image_size; single_query to its shorter side, aspect
    kept; central_crop of it; five_crops of its shorter side, the mean of their descriptors; native leaves images as
    they are, as published CosPlace does."""
    test_folder: Path | None = None
    """Folder with the database and the queries of a final test, which stage 2 ends with: of the encoder that the run
    keeps, as `progeo evaluate` does it, into test/ of the run. null ends without."""
    test_queries: str | None = None
    """Name of the queries' folder in test_folder, such as queries_v1; null takes that of queries."""
    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Folder where the final test keeps descriptors, as `progeo evaluate` does."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is right for it."""
    positive_angle_deg: PositiveFloat | None = None
    """It is correct only where its heading differs from the query's by at most this many degrees, too; null looks at no
    heading."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Processes that decode images."""
    eval_batch_size: PositiveInt = 64
    """Images a batch when nothing is trained."""
    orientation: Orientation = "exif"
    """exif turns photos upright as their files say; ignore takes the pixels as they are stored, as most published
    programs do."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Stage 1 skips images that cannot be read, stage 2 takes another of the class; above this fraction of the images,
    one at least, both stop. 0 allows none."""
    cache_images: bool = False
    """Keep decoded training images, all readable, in memory: 3 bytes for each pixel of the files, fast for a small
    set."""


@dataclass(frozen=True)
class CellSettings:
    """How the map is cut into classes and groups (CosPlace)."""

    cell_side_m: PositiveInt = 10
    """Side of a cell in meters, M in the paper."""
    heading_bin_deg: int = 30
    """Width of a heading bin in degrees, alpha in the paper; 360 for images without heading."""
    groups_per_side: PositiveInt = 5
    """Two classes of a group are this many cells apart, N in the paper."""
    groups_per_heading: PositiveInt = 2
    """Two classes of a group are this many heading bins apart, L in the paper."""
    min_images_per_class: PositiveInt = 10
    """Classes with fewer images are left out."""
    num_groups: PositiveInt = 8
    """How many groups are trained on; epoch e of stage 2 trains on group e modulo this."""


@dataclass(frozen=True)
class ModelSettings:
    """The model that training starts from, a CLIP for both stages, and the encoder made of it."""

    architecture: str = "RN50"
    """RN50, RN101, ViT-B-16, ViT-B-32 or another CLIP of open_clip; tiny-resnet and tiny-vit for trying out; without
    text also vgg16, resnet18, resnet50, resnet101, resnet152 or efficientnet_b0 to efficientnet_b7 of torchvision."""
    weights: str = "openai"
    """A tag of open_clip or torchvision (IMAGENET1K_V1, DEFAULT), hf-hub:owner/name of a CLIP, a local file, random, or
    for stage 2 a folder with an encoder that was trained or imported before."""
    image_size: int | tuple[int, int] = 512
    """Pixels that stage 2's crops are resized to: one side of a square, or height and width."""
    descriptor_dim: int | None = None
    """Dimension of the descriptors; null takes that of CLIP's features or the channels of a torchvision backbone, and
    a ViT allows no other."""
    normalized: bool = True
    """Give a ViT's descriptors length 1; all others always have."""
    normalization: Literal["clip", "imagenet"] | None = None
    """Whose mean and std the pixels are normalized with; null takes those that the weights were trained with. Weights
    that do not say theirs, and random ones, get CLIP's, a backbone of torchvision ImageNet's."""
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue in 0..1, such as [0.5, 0.5, 0.5]: together with std in place of normalization."""
    std: tuple[float, float, float] | None = None
    """See mean."""
    align_corners: bool = False
    """Resize position embeddings between the centers of the corner cells, as the published code does."""
    frozen: tuple[str, ...] = ()
    """Layers of the backbone that stage 2 does not train, such as conv1, transformer.resblocks.0 or features.0."""


@dataclass(frozen=True)
class PromptSettings:
    """Stage 1: learning text prompts."""

    template: str = "A photo of a {} street."
    """The sentence; {} is where the learned vectors stand."""
    context_length: PositiveInt = 4
    """Learned vectors of a class."""
    image_size: int | tuple[int, int] = 224
    """Pixels of the images that stage 1 describes."""
    epochs: PositiveInt = 60
    """Epochs of each group."""
    batch_size: PositiveInt = 512
    """Images a batch."""
    learning_rate: PositiveFloat = 1e-2
    """Of Adam at the start; it falls to zero along a cosine."""
    temperature: PositiveFloat = 1.0
    """Divides the dot products of the contrastive loss."""
    normalized: bool = False
    """Compare directions of image and text features only; the published method compares raw features."""
    batch_norm: BatchNormMode = "calibrated"
    """Statistics that batch norms normalize with while image features are extracted: eval takes those of the weights,
    and calibrated does so too unless the weights never saw an image, then it takes those of one pass over at most 4,096
    of the images; batch takes those of each batch of data.eval_batch_size random images, as the published program
    does."""
    feature_cache: Path = Path("runs/feature_cache")
    """Folder where image features are kept for later runs."""


@dataclass(frozen=True)
class HeadSettings:
    """Stage 2: the margin classifier over the places of a group."""

    kind: HeadKind = "cosface"
    """cosface, arcface, or linear without margin."""
    scale: PositiveFloat = 30.0
    """Multiplies the cosines."""
    margin: NonNegativeFloat = 0.4
    """Of the right class: a cosine for cosface, radians for arcface."""
    weight: NonNegativeFloat = 1.0
    """Weight of the classifier's loss; 0 trains without."""


@dataclass(frozen=True)
class TextSettings:
    """Stage 2: the image-text loss."""

    weight: NonNegativeFloat = 1.0
    """Weight of the image-text loss; 0 trains without text and without prompts."""
    label_smoothing: ClosedUnitInterval = 0.1
    """Share of the target spread evenly over the classes."""
    normalized: bool = False
    """Compare directions of descriptors and text features only; the published method compares raw features."""
    temperature: PositiveFloat = 1.0
    """Divides the dot products; 0.07 is usual where they are cosines."""
    learn_temperature: bool = False
    """Start with this temperature and train it, with head_learning_rate, down to 0.01."""
    prompts: Path | None = None
    """Folder where stage 1 left its prompts; null takes stage1 of this run."""


@dataclass(frozen=True)
class TripletSettings:
    """Stage 2: the triplet loss between the images of a batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the loss; above 0, training.images_per_class must be 2 or more."""
    kind: Literal["softmax_weighted", "batch_hard"] = "softmax_weighted"
    """All pairs of the batch, weighted by how hard they are, or the hardest two of each image."""
    margin: NonNegativeFloat | None = None
    """Of batch_hard only, in Euclidean distance; null is the soft margin."""


@dataclass(frozen=True)
class TrainingSettings:
    """Stage 2: training the image encoder."""

    epochs: PositiveInt = 64
    """Epochs; each trains on one group and ends with a validation."""
    iterations_per_epoch: PositiveInt = 10_000
    """Batches an epoch."""
    batch_size: PositiveInt = 32
    """Images a batch, over all processes."""
    images_per_class: PositiveInt = 1
    """K of P x K sampling: different images of a class come together in a batch, as far as the class has them."""
    micro_batches: PositiveInt = 1
    """Pieces in which a process computes its images of a batch: less memory, the same gradient but where there is batch
    norm, whose statistics are those of a piece. Several processes exchange gradients after each piece."""
    gradient_checkpointing: bool = False
    """Compute a ViT's blocks once more for the gradient, instead of keeping what is in them: less memory."""
    compile: bool = False
    """Compile the encoder with torch.compile: minutes at the start, faster steps."""
    encoder_learning_rate: PositiveFloat = 1e-5
    """Of Adam, for the encoder."""
    head_learning_rate: PositiveFloat = 1e-2
    """Of Adam, for what is not exported: the classifiers, and the map from descriptors to text features."""
    schedule: Schedule = "constant"
    """Of the learning rates: constant, or cosine, which falls to zero over all epochs."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rates rise at the start."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, of the encoder's matrices and kernels; norms and biases never decay."""
    ema_decay: OpenUnitInterval | None = None
    """Validate and keep the mean of the encoder's weights over the steps, exponential with this decay, such as 0.999;
    null keeps the weights themselves."""
    max_gradient_norm: PositiveFloat | None = None
    """Clip the gradient to this length; null does not clip."""
    skip_not_finite: bool = False
    """Leave out and count a step whose loss or gradient is not finite, instead of stopping."""
    patience: PositiveInt | None = None
    """Stop when the validation's R@1 was not beaten for so many epochs; null trains all of them. What the encoder
    reached before training does not count."""
    keep: Keep = "best"
    """Which encoder the run gives: best, of the epoch with the highest R@1 in validation, in best/; or last, in last/.
    The encoder before training never is."""
    keep_every: PositiveInt | None = None
    """Keep the encoder after every so many epochs, too, each in a folder of epochs/; null keeps none of them."""
    checkpoint_every: PositiveInt = 1000
    """Steps from one checkpoint to the next within an epoch; there is always one at its end."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are removed; encoders never are."""


@dataclass(frozen=True)
class Settings:
    """Settings of stage 1 and stage 2."""

    run: Path
    """Folder of the run: stage 1 writes to its stage1/, stage 2 to its stage2/."""
    data: DataSettings
    seed: int = 0
    """Of every random choice, from 0 to 2**64 - 1."""
    resume: bool = False
    """Go on with what the run's folder holds."""
    mixed_precision: Precision = "no"
    """Precision of the networks while training and describing."""
    trackers: tuple[Tracker, ...] = ()
    """Who is told of stage 2: tensorboard, wandb, or both; for wandb a run that goes on is a new one."""
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
