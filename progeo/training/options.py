"""Options of both training stages."""

from dataclasses import dataclass
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

from progeo.engine.options import Keep, Schedule
from progeo.models.options import BatchNormMode, Preprocessing


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Stage 2: validation images, searched after every epoch."""

    folder: Path
    """Folder that holds the database and the queries of the validation."""
    kind: str = "retrieval"
    """What a validation measures: retrieval, the recall R@N of the nearest database images; or classification, the
    localization recall LR@N of the classes whose vectors have the highest cosines, which needs no database. A plugin
    may add others."""
    database: str = "database"
    """Name of the database folder inside folder."""
    queries: str = "queries"
    """Name of the query folder inside folder."""
    preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of images in validation and in the final test. hard_resize resizes to encoder.image_size and
    ignores the aspect ratio; single_query resizes the shorter side to the shorter side of encoder.image_size and keeps
    the aspect ratio; central_crop resizes to cover encoder.image_size and crops the center; five_crops averages the
    descriptors of five square crops; native keeps images as they are, as published CosPlace does."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image or class center within this many meters of a query is a positive (a correct match)."""
    positive_angle_deg: PositiveFloat | None = None
    """Maximum heading difference in degrees between a query and its positives, in addition to positive_radius_m. null
    ignores headings."""


@dataclass(frozen=True, kw_only=True)
class FinalTestOptions:
    """Stage 2: the final test of the encoder that a run keeps."""

    folder: Path | None = None
    """Folder that holds the database and the queries of a final test. At the end of stage 2 the kept encoder is
    evaluated on it as by `progeo evaluate`, with the results in test/ of the run. null skips the final test."""
    queries: str | None = None
    """Name of the query folder inside folder, such as queries_v1. null takes the value of validation.queries."""
    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Cache folder for the descriptors of the final test, as of `progeo evaluate`."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
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


@dataclass(frozen=True, kw_only=True)
class TextOptions:
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


@dataclass(frozen=True, kw_only=True)
class TripletOptions:
    """Stage 2: the triplet loss between the images of a batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the triplet loss. 0 disables the loss; above 0, training.images_per_class must be at least 2."""
    kind: Literal["softmax_weighted", "batch_hard"] = "softmax_weighted"
    """Mining of triplets: softmax_weighted weights all pairs of the batch by how hard they are; batch_hard takes the
    hardest positive and the hardest negative of each image."""
    margin: NonNegativeFloat | None = None
    """Margin of batch_hard, a Euclidean distance. null uses the soft margin."""

    def __post_init__(self) -> None:
        if self.margin is not None and self.kind != "batch_hard":
            raise ValueError(f"`triplet.margin` is for `triplet.kind` batch_hard only, got {self.kind}: leave it out.")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of every training."""

    epochs: PositiveInt = 64
    """Number of epochs. Each trains on one group and ends with a validation."""
    schedule: Schedule = "constant"
    """Schedule of the learning rates: constant; cosine, which decays to zero over all epochs at every step;
    cosine_epochs, the same once per epoch; step, which multiplies them by decay_factor after every decay_epochs epochs;
    plateau, which does so after decay_epochs epochs without a better validation; or loss_plateau, which does so after
    decay_epochs epochs in a row whose mean training loss is not below that of all former epochs on the same group."""
    warmup_steps: NonNegativeInt = 0
    """Number of warmup steps, over which the learning rates rise at the start. 0 starts at the full rates."""
    decay_epochs: PositiveInt = 10
    """Number of epochs before a decay of the schedules step, plateau and loss_plateau."""
    decay_factor: OpenUnitInterval = 0.5
    """Factor of the learning rates at a decay of the schedules step, plateau and loss_plateau."""
    min_learning_rate: PositiveFloat | None = None
    """End the training when the schedule has lowered the learning rate of the encoder below this. null trains all
    epochs."""
    ema_decay: OpenUnitInterval | None = None
    """Decay of an exponential moving average of the encoder's weights over the steps, such as 0.999. The averaged
    encoder is validated and kept, with the classifiers as they are. null uses the weights themselves."""
    max_gradient_norm: PositiveFloat | None = None
    """Maximum L2 norm of the gradient, to which it is clipped. null does not clip."""
    skip_not_finite: bool = False
    """Skip and count a step whose loss or gradient is not finite, instead of stopping."""
    patience: PositiveInt | None = None
    """Number of epochs without a better validation (its R@1 or LR@1) after which training stops early. The one before
    training does not count. null trains all epochs."""
    keep: Keep = "best"
    """Encoder to keep: best keeps the epoch with the best validation (highest R@1 or LR@1) in best/; last keeps the
    last epoch in last/. The encoder before training is never kept."""
    keep_every: PositiveInt | None = None
    """Also keep the encoder after every this many epochs, in a folder of epochs/. null keeps none of them."""
    checkpoint_every: PositiveInt = 1000
    """Number of steps between checkpoints within an epoch. There is always one at the end of an epoch."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep. Older ones are removed; encoders are never removed."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainerOptions):
    """Stage 2: training the image encoder."""

    batches: str = "classes"
    """How batches are drawn: classes draws images_per_class images of each of several classes of a group (P x K
    sampling). A plugin may add others."""
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
    """Learning rate of AdamW for the parts beside the encoder: the classifiers, and the projection from descriptors to
    text features."""
    head_schedule: Literal["as_encoder", "constant"] = "as_encoder"
    """Schedule of head_learning_rate: as_encoder follows schedule and warmup_steps; constant keeps it, as
    Divide&Classify does."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the encoder's matrices and kernels. Norms and biases never decay."""
    cache_images: bool = False
    """Keep decoded training images in memory, at 3 bytes per pixel of the files. Fast for a small set; every image must
    be readable."""

    def __post_init__(self) -> None:
        if self.min_learning_rate is not None and self.min_learning_rate > self.encoder_learning_rate:
            raise ValueError(
                f"`training.min_learning_rate` {self.min_learning_rate:g} must not be above `encoder_learning_rate` "
                f"{self.encoder_learning_rate:g}: no epoch would be trained."
            )
        if self.min_learning_rate is not None and self.schedule == "constant":
            raise ValueError(
                "`training.min_learning_rate` is for a `training.schedule` that lowers the learning rate, not for "
                "constant: leave it out."
            )
