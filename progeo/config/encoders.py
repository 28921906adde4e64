"""Settings of what a run leaves: reading its prompts, taking its encoder away; and of the demo."""

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt


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
class ExportSettings:
    """Settings of an export."""

    run: Path
    """Run of stage 2, or a folder with an encoder."""
    to: Path | None = None
    """Folder for model.safetensors and model.json; null takes export/ in the run."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    out: Path = Path("demo")
    """Folder for the city, the run, the encoder and the evaluations."""
    training_config: Path = Path("configs/toy/tiny_resnet.yaml")
    """Settings of both stages."""
