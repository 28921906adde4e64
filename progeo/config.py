"""Settings: dataclasses <-> YAML <-> command line. Stages take them apart; nothing below a stage sees them."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings
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
from progeo.engine.schedules import Schedule
from progeo.models.heads import HeadKind

AnySettings = TypeVar("AnySettings")


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
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many metres of a query is right for it."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Processes that decode images."""
    eval_batch_size: PositiveInt = 64
    """Images a batch when nothing is trained."""
    max_unreadable_share: ClosedUnitInterval = 0.01
    """Stage 1 leaves out images that cannot be read, stage 2 takes another of the class; above this share both stop."""
    cache_images: bool = False
    """Keep decoded training images, all readable, in memory: 3 bytes a pixel of image_size, fast for a small set."""


@dataclass(frozen=True)
class CellSettings:
    """How the map is cut into classes and groups (CosPlace)."""

    cell_side_m: PositiveInt = 10
    """Side of a cell in metres, M in the paper."""
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
    """A tag of open_clip or torchvision (IMAGENET1K_V1, DEFAULT), hf-hub:owner/name of a CLIP, a local file, or
    random."""
    image_size: int | tuple[int, int] = 512
    """Pixels of stage 2's images: one side of a square, or height and width."""
    descriptor_dim: int | None = None
    """Dimension of the descriptors; null takes that of CLIP's features or the channels of a torchvision backbone, and
    a ViT allows no other."""
    normalised: bool = True
    """Give a ViT's descriptors length 1; all others always have."""
    normalisation: Literal["clip", "imagenet"] = "clip"
    """Whose mean and spread the pixels are given."""
    align_corners: bool = False
    """Resize position embeddings between the centres of the corner cells, as the published code does."""
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
    normalised: bool = False
    """Compare directions of image and text features only; the published method compares raw features."""
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
    normalised: bool = False
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
    """Stop when the validation's R@1 was not beaten for so many epochs; null trains all of them."""
    checkpoint_every: PositiveInt = 1000
    """Steps from one checkpoint to the next within an epoch; there is always one at its end."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are removed; the best encoder never is."""


@dataclass(frozen=True)
class Settings:
    """Settings of stage 1 and stage 2."""

    run: Path
    """Folder of the run: stage 1 writes to its stage1/, stage 2 to its stage2/."""
    data: DataSettings
    seed: int = 0
    """Of every random choice."""
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


@dataclass(frozen=True)
class ShowPromptsSettings:
    """Settings of showing prompts."""

    run: Path
    """Run whose prompts to read."""
    class_: str | None = None
    """EAST,NORTH or EAST,NORTH,HEADING of a place, in UTM metres and degrees; several parted by spaces; null is all."""
    num_words: PositiveInt = 5
    """Words for each learned vector."""
    out: Path | None = None
    """CSV to write; null takes prompts.csv beside the prompts."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of an evaluation."""

    encoder: str
    """Folder of an exported encoder or of a run of stage 2, or thumbnail for the raw-pixel baseline."""
    folder: Path
    """Folder with the database and the queries."""
    out: Path
    """Folder for recalls.json, recalls.csv, recalls.md, predictions.csv and report.html."""
    protocol: str | None = None
    """Such as pitts30k_test, of progeo/evaluation/protocols: sets database, queries, positive_radius_m and
    one_per_panorama, and refuses a folder with other counts."""
    database: str = "database"
    """Name of the database's folder."""
    queries: str = "queries"
    """Name of the queries' folder, such as queries_v1."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many metres of a query is right for it."""
    radii_m: tuple[PositiveFloat, ...] = (5.0, 25.0, 100.0)
    """Recalls are given for these radii too."""
    without_positive: Literal["missed", "left_out"] = "missed"
    """Queries without any right database image: missed, as in the field's benchmarks, or left out."""
    one_per_panorama: bool = False
    """Of the parts of a panorama only the nearest is a prediction, as usual for Tokyo 24/7."""
    recall_ns: tuple[int, ...] = (1, 5, 10, 20)
    """The Ns of recall@N."""
    image_size: int | tuple[int, int] | None = None
    """Pixels that images are resized to: one side, or height and width; null takes the encoder's own."""
    batch_size: PositiveInt = 64
    """Images a batch."""
    num_workers: NonNegativeInt = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Processes that decode images."""
    mixed_precision: Precision = "no"
    """Precision of the encoder."""
    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Folder where descriptors are kept for later evaluations of the same encoder on the same images."""
    keep_as: Literal["float32", "float16"] = "float32"
    """Precision of the descriptors that are kept."""
    index: str | None = None
    """Search a compressed index, as faiss writes its kind: IVF1024,Flat, OPQ32,IVF1024,PQ32, HNSW32, SQ8, PCA128,Flat;
    the report says what that loses and saves. null searches exactly."""
    probes: PositiveInt = 16
    """Of an IVF index, how many of its lists a search looks through."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export."""

    run: Path
    """Run of stage 2, or a folder with an encoder."""
    to: Path | None = None
    """Folder for model.safetensors and model.json; null takes export/ in the run."""


@dataclass(frozen=True)
class ToyCitySettings:
    """Settings of a toy city."""

    out: Path
    """Folder to make."""
    seed: int = 0
    """Of the streets, the houses and the weather."""
    num_images: PositiveInt = 2000
    """Images in all, over train, val and test."""
    image_size: int = 128
    """Side of an image in pixels."""


@dataclass(frozen=True)
class DatasetIndexSettings:
    """Settings of an index."""

    folder: Path
    """Folder of images; its index is written beside it, as <folder>.arrow."""


@dataclass(frozen=True)
class DatasetTableSettings:
    """Settings of reading a table of images."""

    table: Path
    """.csv, .tsv, .parquet or .geojson with a column path, latitude and longitude (or UTM east and north), heading."""
    out: Path
    """The catalogue is written as <out>.arrow; <out> then stands for a folder of images in every command."""
    images: Path | None = None
    """Folder that the paths are relative to; null takes the table's."""
    link: bool = False
    """Make the folder <out> too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetPhotosSettings:
    """Settings of reading photos that say where they were taken."""

    folder: Path
    """Folder of photos with GPS positions in their EXIF."""
    out: Path
    """The catalogue is written as <out>.arrow; <out> then stands for a folder of images in every command."""
    link: bool = False
    """Make the folder <out> too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetStructSettings:
    """Settings of reading a dbStruct."""

    file: Path
    """Such as pitts30k_test.mat, pitts250k_train.mat, tokyo247.mat or tokyoTM_val.mat."""
    images: Path
    """Folder that the names of database images are relative to."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder or data.val_folder."""
    query_images: Path | None = None
    """The same of queries; null takes images."""
    link: bool = False
    """Make the folders database and queries too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetArraysSettings:
    """Settings of reading ground truth as NumPy arrays."""

    folder: Path
    """Holds dbImages.npy, qImages.npy and gt.npy, whatever their names begin with."""
    images: Path
    """Folder that the names in them are relative to."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder."""


@dataclass(frozen=True)
class DatasetCheckSettings:
    """Settings of a check."""

    folder: Path
    """Folder of training images, or one with database and queries."""
    out: Path | None = None
    """Folder for check.json and check.html, a page with a map and a histogram; null writes nothing."""
    database: str = "database"
    """Name of the database's folder."""
    queries: str = "queries"
    """Name of the queries' folder."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many metres of a query is right for it."""
    min_side_px: PositiveInt = 64
    """Images with a shorter side are called tiny."""
    cells: CellSettings = field(default_factory=CellSettings)


@dataclass(frozen=True)
class DatasetGroupsSettings:
    """Settings of a plan of groups."""

    folder: Path
    """Folder of training images."""
    cells: CellSettings = field(default_factory=CellSettings)


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    out: Path = Path("demo")
    """Folder for the city, the run, the encoder and the evaluations."""
    training_config: Path = Path("configs/toy/tiny_resnet.yaml")
    """Settings of both stages."""


def parse_settings(
    kind: type[AnySettings], arguments: Sequence[str], *, program: str, positional: bool = False
) -> AnySettings:
    """Read settings from `--config FILE.yaml` and `--section.name value`, the latter winning where it comes later.

    Args:
        kind: the dataclass to fill.
        arguments: the command line.
        program: how errors and help call the command.
        positional: settings without a default come as plain words.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=program, description=kind.__doc__, allow_abbrev=False)
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(kind, as_positional=positional)
    for action in parser._actions:  # `class_` is --class: Python keeps the word for itself
        if any(option.endswith("_") for option in action.option_strings):
            action.option_strings = [option.rstrip("_") for option in action.option_strings]
            parser._option_string_actions |= dict.fromkeys(action.option_strings, action)
    values = parser.parse_args(list(arguments))
    return kind(**{name: value for name, value in vars(parser.instantiate(values)).items() if name != "config"})


def plain_values(settings: Any) -> dict[str, Any]:
    """Settings as nested dicts of YAML's own kinds of values, from which `--config` reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return str(value)
        # PositiveInt and its like become plain numbers again.
        return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), value)

    return plain(dataclasses.asdict(settings))
