"""Settings of the commands that show prompts, export and import encoders, and run the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt


@dataclass(frozen=True)
class ShowPromptsSettings:
    """Settings of showing the words nearest to the learned prompts."""

    run: Path
    """Folder of the run that learned the prompts."""
    class_: str | None = None
    """Classes to show, as EAST,NORTH or EAST,NORTH,HEADING of a place in UTM meters and degrees; separate several by
    spaces. null shows all classes."""
    num_words: PositiveInt = 5
    """Number of nearest words for each learned vector."""
    out: Path | None = None
    """CSV file to write. null writes prompts.csv next to the prompts."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of exporting an encoder."""

    run: Path
    """Folder of a stage 2 run, or of an encoder."""
    to: Path | None = None
    """Output folder. null writes to export/ in the run, or to export_FORMAT/ for a format other than safetensors."""
    format: Literal["safetensors", "onnx", "torch", "backbone"] = "safetensors"
    """Output format. safetensors is for progeo.load_encoder, torch.hub and the Hugging Face Hub; onnx for onnxruntime
    and others; torch is a torch.export program; backbone is the backbone alone, with the parameter names of open_clip
    or torchvision."""
    input: Literal["normalized", "pixels", "photos"] = "normalized"
    """Input of an onnx or torch export. normalized takes normalized images, float (B, 3, H, W); pixels takes uint8
    images (B, H, W, 3) and normalizes them; photos takes uint8 images and also resizes them to the encoder's image
    size."""
    fp16: bool = False
    """Store the weights of an onnx export in half precision, which halves the file size. Computation stays in
    float32."""


@dataclass(frozen=True)
class ImportSettings:
    """Settings of importing weights or prompts of other programs."""

    file: Path
    """Weights of published ProGEO, CosPlace, EigenPlaces or Divide&Classify, or of a CLIP of OpenAI, open_clip or
    Hugging Face, the latter two also as a folder with their configuration; or prompts of published ProGEO's stage 1."""
    to: Path | None = None
    """Output folder. null takes the name of the file, with _encoder in place of its suffix."""
    image_size: int | tuple[int, int] | None = None
    """Size in pixels that images are resized to: one side of a square, or height and width. null takes the published
    size; a CLIP or any ViT takes the size of its position embedding, and no other is allowed."""
    normalized: bool | None = None
    """L2-normalize the descriptors of an encoder with CLIP's pooling. null takes false for a ViT of published ProGEO,
    otherwise true."""
    quickgelu: bool | None = None
    """Use QuickGELU as the activation of a CLIP. null takes what the file says, and GELU if it does not say."""
    weights_in: str | None = None
    """Entry of the checkpoint that holds the weights, such as ema or state.model_ema. null takes the only entry, or if
    there are several model_state_dict, state_dict or model."""
    class_order: Path | None = None
    """For prompts: cache file of the published code with the classes of every group, ending in .torch. null imports the
    prompts for reading only."""
    clip: str | None = None
    """For prompts: architecture of the CLIP they were learned with. Stage 2 can use the prompts only with it and
    class_order. null imports the prompts for reading only."""
    clip_weights: str = "openai"
    """For prompts: weights of that CLIP, with the values of model.weights."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    out: Path = Path("demo")
    """Output folder for the city, the run, the encoder and the evaluations."""
    training_config: Path = Path("configs/toy/tiny_resnet.yaml")
    """YAML file with the training settings of both stages."""
