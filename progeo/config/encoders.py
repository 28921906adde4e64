"""Settings of what a run leaves: reading its prompts, taking its encoder away, bringing others in; and of the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt


@dataclass(frozen=True)
class ShowPromptsSettings:
    """Settings of showing prompts."""

    run: Path
    """Run whose prompts to read."""
    class_: str | None = None
    """EAST,NORTH or EAST,NORTH,HEADING of a place, in UTM meters and degrees; several parted by spaces; null is all."""
    num_words: PositiveInt = 5
    """Words for each learned vector."""
    out: Path | None = None
    """CSV to write; null takes prompts.csv beside the prompts."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export."""

    run: Path
    """Run of stage 2, or a folder with an encoder."""
    to: Path | None = None
    """Folder for what is written; null takes export/ in the run, or export_FORMAT/."""
    format: Literal["safetensors", "onnx", "torch", "trunk"] = "safetensors"
    """safetensors is for progeo.load_encoder, torch.hub and the Hugging Face Hub; onnx for onnxruntime and others;
    torch is a program of torch.export; trunk the backbone alone, in the names of open_clip or torchvision."""
    input: Literal["normalized", "pixels", "photos"] = "normalized"
    """Of onnx and torch: normalized images, float (B, 3, H, W); pixels, uint8 (B, H, W, 3), which are normalized
    inside; photos, pixels that are also resized inside to the encoder's size."""
    fp16: bool = False
    """Of onnx: weights in half precision, in a file of half the size; they are computed with in float32."""


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import."""

    file: Path
    """Weights of published ProGEO, CosPlace, EigenPlaces, Divide&Classify, or of a CLIP of OpenAI, open_clip or Hugging
    Face, the latter two also as a folder with their configuration; or prompts of published ProGEO's stage 1."""
    to: Path | None = None
    """Folder for what is written; null takes the name of the file, with _encoder in place of its ending."""
    image_size: int | tuple[int, int] | None = None
    """Pixels that images are resized to: one side of a square, or height and width; null takes the size that was
    published, or for a CLIP and any ViT that of its position embedding, which allows no other."""
    normalized: bool | None = None
    """Whether descriptors that CLIP pools get length 1; null takes false for a ViT of published ProGEO, else true."""
    quickgelu: bool | None = None
    """Whether the activation of a CLIP is QuickGELU; null takes what the file says, GELU where it says nothing."""
    weights_in: str | None = None
    """Part of a checkpoint that holds the weights, such as ema or state.model_ema; null takes the only one, or of
    several model_state_dict, state_dict or model."""
    class_order: Path | None = None
    """For prompts: file of the published code's cache with the classes of every group, ending in .torch."""
    clip: str | None = None
    """For prompts: architecture of their CLIP; with it and class_order stage 2 may be able to go on with them."""
    clip_weights: str = "openai"
    """For prompts: weights of that CLIP, as model.weights of a training."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    out: Path = Path("demo")
    """Folder for the city, the run, the encoder and the evaluations."""
    training_config: Path = Path("configs/toy/tiny_resnet.yaml")
    """Settings of both stages."""
