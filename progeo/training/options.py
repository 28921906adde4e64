"""Options of both training stages."""

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
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
from progeo.models.options import BatchNormMode, ClassTokenPosition, Preprocessing


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Stage 2: validation images, searched after every epoch."""

    folder: Path | None = None
    """Folder that holds the database and the queries of the validation. Required, unless validation.kind is none."""
    kind: str = "retrieval"
    """What a validation measures: retrieval, the recall R@N of the nearest database images; classification, the
    localization recall LR@N of the classes whose vectors have the highest cosines, which needs no database; or none,
    where nobody knows where any photo was taken, with training.keep last. A plugin may add others."""
    database: str = "database"
    """Name of the database folder inside folder."""
    queries: str = "queries"
    """Name of the query folder inside folder."""
    preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of images in validation and in the final test. hard_resize resizes to encoder.image_size and
    ignores the aspect ratio; single_query resizes the shorter side to the shorter side of encoder.image_size and keeps
    the aspect ratio; larger_query resizes it to the longer side; central_crop resizes to cover encoder.image_size and
    crops the center; five_crops averages the descriptors of five square crops; native keeps images as they are, as
    published CosPlace does."""
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
    """Template of the prompt. {} stands for the learned context vectors, and for the words of a class."""
    context_length: PositiveInt = 4
    """Number of learned context vectors per class."""
    class_names: Path | None = None
    """CSV file with a name for each image, such as that of its street: a class has the most frequent name of its images
    as words in its prompt. Its columns are the path of an image in data.train_folder, as path or image, and
    class_names_column. null takes no words."""
    class_names_column: str = "name"
    """Column of class_names with the names."""
    class_token_position: ClassTokenPosition | None = None
    """Where the words of a class stand: at the end of its vectors, in the middle or in front of them. null is end."""
    shared_context: bool = False
    """Learn one context for all classes of a group, which then differ by their words alone. Needs class_names."""
    initial_words: str | None = None
    """Words that the vectors start from, such as "a photo of a street corner in", of context_length tokens. null starts
    from noise."""
    image_size: int | tuple[int, int] = field(default=224, metadata={"title": "Stage 1: image features"})
    """Size in pixels of the images whose features stage 1 extracts: one side of a square, or height and width."""
    batch_norm: BatchNormMode = "calibrated"
    """Batch-norm statistics while image features are extracted. eval takes the running statistics of the weights;
    calibrated does too, except for weights that were never trained on images, which take the statistics of one pass
    over at most 4,096 of the images; batch takes the statistics of each batch of data.eval_batch_size random images, as
    the published code does."""
    feature_cache: Path = Path("runs/feature_cache")
    """Cache folder for image features, which later runs reuse."""
    epochs: PositiveInt = field(default=60, metadata={"title": "Stage 1: steps, loss and checkpoints"})
    """Number of epochs for each group."""
    batch_size: PositiveInt = 512
    """Number of images per batch."""
    learning_rate: PositiveFloat = 1e-2
    """Initial learning rate of Adam. It decays to zero along a cosine."""
    patience: PositiveInt | None = None
    """Number of epochs without a better image-to-text accuracy, on the held-out images if held_out is above 0, after
    which the training of a group stops. The vectors of the best epoch are kept. null trains all epochs and keeps the
    vectors of the last."""
    held_out: ClosedUnitInterval = 0.0
    """Share of the images of each class that are held out of training to measure accuracies on, rounded up. A class
    keeps at least one image to train on."""
    temperature: PositiveFloat | Literal["clip"] = 1.0
    """Temperature that divides the dot products of the contrastive loss. clip takes that of the model, which needs
    normalized."""
    normalized: bool = False
    """L2-normalize image and text features before the loss. The published method uses raw features."""
    checkpoint_minutes: NonNegativeFloat = 5.0
    """Minimum number of minutes between checkpoints at the end of epochs. 0 writes one after every epoch. A stop by
    Ctrl-C or SIGTERM writes one, too."""
    log_every: PositiveInt | None = 50
    """Number of steps between rows of metrics.jsonl with mean losses, learning rate, throughput and memory, besides
    those of epochs. null writes none."""

    def __post_init__(self) -> None:
        _check_temperature("prompts", self.temperature, normalized=self.normalized)
        if self.class_names is None and self.shared_context:
            raise ValueError(
                "`prompts.shared_context` needs `prompts.class_names`: without words of its own, every class of a "
                "group would have the same text. Give a table of names, or leave it out."
            )
        if self.class_names is None and self.class_token_position:
            raise ValueError(
                "`prompts.class_token_position` is for the words of `prompts.class_names`, which is null: leave it out."
            )
        if self.class_token_position == "middle" and self.context_length == 1:
            raise ValueError("`prompts.class_token_position` middle needs a `prompts.context_length` of at least 2.")


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Stage 2: the image-text loss."""

    weight: NonNegativeFloat = 1.0
    """Weight of the image-text loss. 0 trains without text, and needs no prompts."""
    label_smoothing: ClosedUnitInterval = 0.1
    """Fraction of the target probability distributed evenly over all classes."""
    normalized: bool = False
    """L2-normalize descriptors and text features before the loss. The published method uses raw features."""
    temperature: PositiveFloat | Literal["clip"] = 1.0
    """Temperature that divides the dot products. 0.07 is common for normalized features; clip takes that of the CLIP
    whose prompts they are, which needs normalized."""
    learn_temperature: bool = False
    """Train the temperature, starting from this value, with head_learning_rate and a minimum of 0.01."""
    prompts: Path | None = None
    """Folder of the prompts that stage 1 learned. null takes stage1 of this run."""

    def __post_init__(self) -> None:
        _check_temperature("text", self.temperature, normalized=self.normalized)


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
class MultiSimilarityOptions:
    """Stage 2: the multi-similarity loss of the mined pairs of a batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the multi-similarity loss. 0 disables the loss; above 0, training.images_per_class must be at least
    2."""
    alpha: PositiveFloat = 1.0
    """Factor of the cosines of positives."""
    beta: PositiveFloat = 50.0
    """Factor of the cosines of negatives."""
    base: float = 0.0
    """Cosine that those of positives and negatives are compared with."""
    epsilon: NonNegativeFloat = 0.1
    """Margin of the mining: a positive takes part if its cosine is below the highest of a negative plus this, a
    negative if its cosine is above the lowest of a positive minus this."""


@dataclass(frozen=True, kw_only=True)
class SupconOptions:
    """Stage 2: the supervised contrastive loss between the images of a batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the supervised contrastive loss. 0 disables the loss; above 0, training.images_per_class must be at
    least 2."""
    temperature: PositiveFloat = 0.1
    """Temperature that divides the cosines."""


@dataclass(frozen=True, kw_only=True)
class TuplesOptions:
    """Stage 2: the loss of mined tuples, of training.batches tuples."""

    weight: NonNegativeFloat = 0.0
    """Weight of the loss of tuples. 0 disables the loss; above 0, training.batches must be tuples."""
    kind: Literal["sare", "sare_joint", "triplet"] = "sare"
    """Loss of a query, its positive and its negatives: sare compares the positive with each negative on its own,
    sare_joint with all of them at once (Liu et al., ICCV 2019); triplet is the margin loss of NetVLAD."""
    temperature: PositiveFloat | None = 0.07
    """Temperature that divides the dot products of sare and sare_joint. null takes minus the squared distances, as
    their paper does."""
    margin: NonNegativeFloat = 0.1**0.5
    """Margin of triplet, a Euclidean distance."""
    hardest_regions: bool = False
    """From the second generation on, replace each negative by its region that is most similar to the query, as SFRS and
    WAKD do. Needs an aggregation with regions, such as netvlad."""


@dataclass(frozen=True, kw_only=True)
class RegionsOptions:
    """Stage 2: the soft labels of regions of difficult positives, from the second generation on."""

    weight: NonNegativeFloat = 0.0
    """Weight of the loss of soft labels, 0.5 in SFRS and WAKD. 0 disables the loss; above 0, training.generations must
    be at least two, and the aggregation must have regions, such as netvlad."""
    temperature: PositiveFloat = 0.07
    """Temperature of the similarities of the encoder in training."""
    target_temperatures: tuple[PositiveFloat, ...] = (0.07, 0.07, 0.06, 0.05)
    """Temperature of the similarities of the target, the encoder of the generation before, for each generation. Later
    generations take the last one."""

    def __post_init__(self) -> None:
        if not self.target_temperatures:
            raise ValueError("`regions.target_temperatures` must have at least one temperature, for example 0.07.")


@dataclass(frozen=True, kw_only=True)
class GramOptions:
    """Stage 2: distillation of the similarities between the images of a micro-batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the difference between the Gram matrices of the descriptors of encoder and teacher, 100 in WAKD. 0
    disables the loss; above 0, it needs teacher.encoder."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Stage 2: distillation of the attention maps of the images of a micro-batch."""

    weight: NonNegativeFloat = 0.0
    """Weight of the difference between the Gram matrices of the attention maps of encoder and teacher, 100 in WAKD. 0
    disables the loss; above 0, it needs a teacher.encoder with a feature map, and teacher.features step."""


@dataclass(frozen=True, kw_only=True)
class CosineOptions:
    """Stage 2: distillation of the descriptors themselves."""

    weight: NonNegativeFloat = 0.0
    """Weight of 1 minus the cosine between the descriptors of encoder and teacher. 0 disables the loss; above 0, it
    needs teacher.encoder. It needs no labels."""
    linear: bool = True
    """Where the dimensions differ, learn a linear map from the descriptors to those of the teacher, which is not part
    of the encoder. false refuses other dimensions."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Stage 2: the encoder that distillation learns from."""

    encoder: Path | None = None
    """Folder of any trained, imported or exported encoder, or of a run. It is frozen, and gets images of its own size
    and pixel statistics. null trains without a teacher."""
    features: Literal["step", "cache"] = "step"
    """When the teacher runs: step runs it on the augmented images of every step, resized from encoder.image_size; cache
    extracts the descriptors of all training images once, uncropped and resized from the files, so that a step costs no
    teacher."""
    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Cache folder for the descriptors of the teacher, as of `progeo evaluate`."""


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """Stage 2: the tuples that training.batches tuples mines."""

    database: str = "."
    """Name of the database folder inside data.train_folder, such as database; . takes all training images."""
    queries_folder: str | None = None
    """Name of the query folder inside data.train_folder, such as queries. null takes every image of the database as a
    query."""
    positive_radius_m: PositiveFloat = 10.0
    """A database image of another panorama within this many meters of a query is a positive."""
    exclusion_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is no negative."""
    queries: PositiveInt = 1000
    """Number of queries between two minings, rounded up to whole batches; each mining extracts the descriptors of all
    training images with the encoder as it is then."""
    pool: PositiveInt = 1000
    """Number of random database images that the negatives of a query are chosen from, besides those of its last
    mining."""
    negatives: PositiveInt = 10
    """Number of negatives of a query: the nearest ones of the pool."""
    difficult_positives: PositiveInt = 10
    """Maximum number of difficult positives of a query, from the second generation on, if regions.weight is above 0."""
    positive_pool: PositiveInt = 20
    """Number of nearest positives that the difficult ones are chosen from."""
    rerank_k1: PositiveInt = 20
    """Number of neighbors of the k-reciprocal re-ranking that chooses difficult positives."""
    rerank_k2: PositiveInt = 1
    """Number of neighbors whose k-reciprocal sets are averaged. 1 averages none."""
    rerank_weight: ClosedUnitInterval = 0.1
    """Weight of the original distance in the re-ranked one, from 0 to 1."""

    def __post_init__(self) -> None:
        if self.exclusion_radius_m < self.positive_radius_m:
            raise ValueError(
                f"`mining.exclusion_radius_m` {self.exclusion_radius_m:g} must not be below `positive_radius_m` "
                f"{self.positive_radius_m:g}: a positive would be a negative."
            )
        if self.pool < self.negatives:
            raise ValueError(
                f"`mining.pool` {self.pool} must not be below `negatives` {self.negatives}, which are chosen from it."
            )


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of every training."""

    epochs: PositiveInt = 64
    """Number of epochs. Each trains on one group and ends with a validation."""
    ema_decay: OpenUnitInterval | None = None
    """Decay of an exponential moving average of the encoder's weights over the steps, such as 0.999. The averaged
    encoder is validated and kept, with the classifiers as they are. null uses the weights themselves."""
    max_gradient_norm: PositiveFloat | None = None
    """Maximum L2 norm of the gradient, to which it is clipped. null does not clip."""
    skip_not_finite: bool = False
    """Skip and count a step whose loss or gradient is not finite, instead of stopping. After 100 such steps in a row
    training stops all the same."""
    generations: tuple[PositiveInt, ...] = ()
    """Number of epochs of each generation, such as 5 5 5 5, together training.epochs. Each begins with the encoder of
    the beginning again, learns soft labels from the encoder of the generation before, and starts the schedule anew
    (SFRS, WAKD). Empty trains a single generation."""
    tf32: bool = True
    """Let a GPU round the factors of float32 matrix products and convolutions to TF32's 10 bits in training steps,
    several times as fast and more exact than bf16. Losses are computed in float32, and validation is as it is without.
    false also computes convolutions in float32, which PyTorch does not by default."""
    cudnn_benchmark: bool = False
    """Let a GPU measure which algorithm of each convolution is the fastest, in the first steps. A resumed run may
    choose others, so that it does not end with the very same bits."""
    schedule: Schedule = field(default="constant", metadata={"title": "Stage 2: the schedule of the learning rates"})
    """Schedule of the learning rates: constant; cosine, which decays to zero over all epochs at every step;
    cosine_epochs, the same once per epoch; linear, which falls to end_factor over decay_steps; step, which multiplies
    them by decay_factor after every decay_epochs epochs; plateau, which does so after decay_epochs epochs without a
    better validation; or loss_plateau, which does so after decay_epochs epochs in a row whose mean training loss is not
    below that of all former epochs on the same group."""
    warmup_steps: NonNegativeInt = 0
    """Number of warmup steps, over which the learning rates rise at the start. 0 starts at the full rates."""
    decay_epochs: PositiveInt = 10
    """Number of epochs before a decay of the schedules step, plateau and loss_plateau."""
    decay_factor: OpenUnitInterval = 0.5
    """Factor of the learning rates at a decay of the schedules step, plateau and loss_plateau."""
    end_factor: ClosedUnitInterval = 0.0
    """Factor of the learning rates at the end of the schedule linear."""
    decay_steps: PositiveInt | None = None
    """Number of steps after the warmup over which the schedule linear falls; later steps keep end_factor. null takes
    all steps."""
    min_learning_rate: PositiveFloat | None = None
    """End the training when the schedule has lowered the learning rate of the encoder below this. null trains all
    epochs."""
    patience: PositiveInt | None = field(default=None, metadata={"title": "Stage 2: the last epoch, and what is kept"})
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
    log_every: PositiveInt | None = 50
    """Number of steps between rows of metrics.jsonl with mean losses, learning rates, throughput and memory, besides
    those of epochs. null writes none."""

    def __post_init__(self) -> None:
        if not self.generations:
            return
        if sum(self.generations) != self.epochs:
            raise ValueError(
                f"`training.generations` {' '.join(map(str, self.generations))} have {sum(self.generations)} epochs "
                f"together, and `training.epochs` is {self.epochs}: make both the same."
            )
        if self.patience is not None or self.min_learning_rate is not None:
            name = "min_learning_rate" if self.patience is None else "patience"
            raise ValueError(f"`training.{name}` would end a training before its `generations`: leave one of them out.")
        if self.schedule == "plateau":
            raise ValueError(
                "`training.schedule` plateau compares an epoch with those of all `generations`, and each starts the "
                "schedule anew: take another, such as step or loss_plateau."
            )

    def generation_of(self, epoch: int) -> "Generation":
        """Return the generation of an epoch."""
        lengths = self.generations or (self.epochs,)
        ends = list(accumulate(lengths))
        index = min(bisect_right(ends, epoch), len(lengths) - 1)
        return Generation(index, ends[index] - lengths[index], lengths[index])


@dataclass(frozen=True)
class Generation:
    """A range of epochs that begins with the first weights."""

    index: int
    first_epoch: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainerOptions):
    """Stage 2: training the image encoder."""

    batches: str = field(default="classes", metadata={"title": "Stage 2: batches"})
    """How batches are drawn: classes draws images_per_class images of each of several classes of a group (P x K
    sampling); places does so with the places that data.train_folder names, as GSV-Cities does, of at least
    cells.min_images_per_class images, one region (city) after the other; tuples mines queries with a positive and hard
    negatives (NetVLAD, SFRS, WAKD); images draws any images, for distillation without labels. A plugin may add
    others."""
    iterations_per_epoch: PositiveInt = 10_000
    """Number of batches per epoch. An epoch of tuples or places ends when every query or place was drawn, if that is
    earlier."""
    batch_size: PositiveInt = 32
    """Number of images, or of tuples, per batch, over all processes."""
    images_per_class: PositiveInt = 1
    """K of P x K sampling: number of different images of the same class in a batch, as far as the class has them."""
    image_size: int | tuple[int, int] | None = None
    """Size in pixels that crops are resized to in training: one side of a square, or height and width. null takes
    encoder.image_size, the size of validation, final test and the kept encoder; a smaller one costs less."""
    micro_batches: PositiveInt = 1
    """Number of micro-batches that a process splits its images of a batch into. More of them use less memory for the
    same gradient, except with batch norm, gram and attention, which compare the images of a micro-batch. Several
    processes exchange gradients after each micro-batch."""
    gradient_checkpointing: bool = False
    """Recompute the activations of a ViT's blocks in the backward pass instead of storing them, which uses less
    memory."""
    compile: bool = False
    """Compile augmentation and encoder together with torch.compile: minutes at the start, faster steps."""
    cache_images: bool = False
    """Keep decoded training images in memory, at 3 bytes per pixel of the files. Fast for a small set; every image must
    be readable."""
    optimizer: Literal["adamw", "sgd"] = field(default="adamw", metadata={"title": "Stage 2: the optimizer"})
    """Optimizer of encoder and heads."""
    momentum: ClosedUnitInterval = 0.9
    """Momentum of sgd."""
    encoder_learning_rate: PositiveFloat = 1e-5
    """Learning rate of the encoder."""
    backbone_factor: PositiveFloat = 1.0
    """Factor of encoder_learning_rate for the backbone, such as 0.2: the aggregation, which starts untrained, learns
    faster."""
    head_learning_rate: PositiveFloat = 1e-2
    """Learning rate of the parts beside the encoder: the classifiers, and the linear maps from descriptors to text
    features and to those of a teacher."""
    head_schedule: Literal["as_encoder", "constant"] = "as_encoder"
    """Schedule of head_learning_rate: as_encoder follows schedule and warmup_steps; constant keeps it, as
    Divide&Classify does."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the encoder's matrices and kernels: decoupled with adamw, part of the gradient with sgd."""
    decay_norms: bool = False
    """Let the encoder's norms and biases decay too, as the published NetVLAD, SFRS and WAKD do."""
    fixed_target: bool = field(default=False, metadata={"title": "Stage 2: training the image encoder."})
    """Take the encoder of the beginning as the target of all generations, as the published WAKD does, instead of that
    of the generation before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fixed_target and len(self.generations) < 2:
            raise ValueError(
                "`training.fixed_target` is for later generations: set `training.generations`, for example to 5 5 5 5, "
                "or leave it out."
            )
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


def _check_temperature(section: str, temperature: float | str, *, normalized: bool) -> None:
    if temperature == "clip" and not normalized:
        raise ValueError(
            f"`{section}.temperature` clip is the temperature of cosines: set `{section}.normalized` true, or give a "
            f"number, such as the published 1."
        )
