"""Options of building an encoder and its classifiers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from progeo.image_files import Resize

Preprocessing = Literal["hard_resize", "single_query", "larger_query", "central_crop", "five_crops", "native"]
"""How an image is preprocessed for one descriptor; names of the benchmark of Berton et al. (CVPR 2022), and
`larger_query`, as OpenIBL preprocesses the queries of Tokyo 24/7."""
QueryPreprocessing = Literal[
    "hard_resize",
    "single_query",
    "larger_query",
    "central_crop",
    "five_crops",
    "nearest_crop",
    "maj_voting",
    "native",
]
"""How a query image is preprocessed; with `nearest_crop` and `maj_voting` each crop is searched on its own."""
BatchNormMode = Literal["eval", "calibrated", "batch"]
"""Which statistics batch norms use: `eval`, the running statistics of the weights; `calibrated`, those of one pass over
images if the weights have untouched initial statistics, else as `eval`; `batch`, those of each batch."""
ClassTokenPosition = Literal["end", "middle", "front"]
"""Where the words of a class stand in its prompt, relative to the learned vectors."""
HeadKind = Literal["cosface", "arcface", "linear"]
NormalizationName = Literal["clip", "imagenet"]
"""Whose pixel mean and std: those of CLIP, or those of ImageNet."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Pretrained model that training starts from: a CLIP for both stages, or a backbone alone for stage 2."""

    architecture: str = "RN50"
    """Architecture of the model: RN50, RN101, ViT-B-16, ViT-B-32 or another CLIP of open_clip, hf-hub:owner/name or
    local-dir:path to take a CLIP as its weights describe it, or tiny-resnet and tiny-vit for quick tests. Stage 2 also
    takes a classification network of torchvision, such as resnet50 or convnext_tiny, one of timm, such as
    timm/vit_base_patch14_dinov2, or a ViT of timm with learned parts added, such as
    aggregation_tokens/vit_base_patch14_reg4_dinov2, with text where stage 1 was of a CLIP."""
    weights: str = "openai"
    """Pretrained weights: a tag of open_clip, torchvision (IMAGENET1K_V1, DEFAULT) or timm (lvd142m), hf-hub:owner/name
    of a CLIP, a local file, a folder with open_clip_config.json, or random. Stage 2 also takes the folder of a trained
    or imported encoder."""
    normalization: NormalizationName | None = None
    """Pixel mean and std to normalize images with: clip or imagenet. null takes the statistics of the pretrained
    weights; if they are not recorded or the weights are random, those that all weights of a CLIP's architecture share,
    else those of CLIP; of ImageNet for other networks."""
    mean: tuple[float, float, float] | None = None
    """Pixel mean of red, green and blue in 0..1, such as [0.5, 0.5, 0.5]. Set together with std, instead of
    normalization; null uses normalization."""
    std: tuple[float, float, float] | None = None
    """Pixel std of red, green and blue in 0..1. Set together with mean, instead of normalization; null uses
    normalization."""
    resize: Resize | None = None
    """Interpolation by which images are resized, always with antialiasing: bilinear or bicubic. null takes that of the
    weights of a CLIP, of its tag of open_clip, its hf-hub repository or the configuration beside its file; without one,
    for random weights and for networks of torchvision and timm it is bilinear."""
    align_corners: bool = False
    """Interpolate position embeddings with align_corners, as the published code does."""


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Stage 2: the image encoder built from the model."""

    image_size: int | tuple[int, int] = 512
    """Size in pixels that stage 2 resizes crops to: one side of a square, or height and width."""
    descriptor_dim: int | None = None
    """Dimension of the descriptors. null takes that of the aggregation: of CLIP's features, else of the backbone's
    channels or token. Only the aggregations gem and mean_linear allow another."""
    aggregation: str | None = None
    """How the features of the backbone become a descriptor: boq, convap, gem, gem_pool, mean, mean_linear, mixvpr or
    netvlad of its feature map, edtformer, salad or token_gem of its feature map and token, or its token, such as the
    class token of a ViT or the attention pooling of a CLIP. null takes token for a ViT, else gem."""
    aggregation_options: dict[str, Any] = field(default_factory=dict)
    """Options of the aggregation, as NAME=VALUE pairs, here with their defaults. boq: channels=512, num_queries=64,
    num_layers=2, rows=32. convap: out_channels=512, rows=2, columns=2. edtformer: num_queries=64, num_layers=2,
    num_heads=16, channels=256, rows=16, dropout=0.1. gem: local_linear=false. mixvpr: out_channels=1024, rows=4,
    depth=4, ratio=1, and grid, the rows and columns of the feature maps of image_size. netvlad: num_clusters=64,
    regions=thirds as WAKD, or quarters as SFRS. salad: num_clusters=64, cluster_dim=128, token_dim=256, hidden_dim=512,
    dropout=0.3."""
    centroids: Path | None = None
    """File of the clusters that netvlad starts from: a published *_desc_cen.hdf5, or the centroids.hdf5 of another run.
    null clusters local features of 500 training images."""
    normalized: bool = True
    """L2-normalize the descriptors of the aggregation token; all others always do."""
    frozen: tuple[str, ...] = ()
    """Layers of the backbone that stage 2 freezes, such as conv1, transformer.resblocks.0 or features.0. First layers
    keep nothing for a backward pass if all before them is frozen, of a ViT class_embedding and positional_embedding,
    too; otherwise a gradient passes them, and the log says so."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Stage 2: the margin classifier over the classes of a group."""

    kind: HeadKind = "cosface"
    """Classifier head: cosface, arcface, or linear without a margin."""
    scale: PositiveFloat = 30.0
    """Scale that multiplies the cosines of cosface and arcface."""
    margin: NonNegativeFloat = 0.4
    """Margin of the correct class: a cosine for cosface, radians for arcface; linear has none."""
    easy_margin: bool = False
    """Apply the margin of arcface only where the cosine of the correct class is above 0, as Divide&Classify does."""
    smoothing_m: PositiveFloat | None = None
    """Smooth the labels by distance: the target probability of a class falls by a factor of e for every this many
    meters that its center is farther from the image than that of the image's own cell. Headings do not count. null
    does not smooth."""
    weight: NonNegativeFloat = 1.0
    """Weight of the classification loss. 0 disables the loss."""

    def __post_init__(self) -> None:
        if self.easy_margin and self.kind != "arcface":
            raise ValueError(f"`head.easy_margin` is for `head.kind` arcface only, got {self.kind}: leave it out.")
