"""Print the CLIPs of open_clip as a table: how each visual tower is a backbone, and how its prompts are encoded.

Run `python -m benchmarks.clips`; the result is the table of docs/clips.md. No weights are needed.
"""

from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel

from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.clip_towers import kind_of
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.open_clip import OpenClip
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.text_towers.acceptance import tokens_computed

HEADER = (
    "| architecture | visual tower | image size, px | map | token | tokens of a prompt | tokenizer |\n"
    "|---|---|---|---|---|---|---|"
)
OWN_TOKENIZER = "CLIP's"


def main() -> None:
    """Print the table, and how many architectures are accepted."""
    rows = [row_of(name) for name in open_clip.list_models()]
    print("\n".join([HEADER, *(f"| {' | '.join(row)} |" for row in rows)]))
    accepted = [row for row in rows if not any("refused" in cell for cell in row)]
    print(f"\n{len(accepted)} of {len(rows)} architectures of open_clip {open_clip.__version__} are accepted.")


def row_of(architecture: str) -> tuple[str, ...]:
    """Return the cells of an architecture."""
    return (architecture, *visual_cells(architecture), *text_cells(architecture))


def visual_cells(architecture: str) -> tuple[str, ...]:
    """Return the cells of a visual tower: what it is, its image size and which it takes, map and token."""
    try:
        tower = summarize_tower(architecture)
    except ValueError as error:
        return f"refused: {error}", "", "", ""
    height, width = tower.image_size
    taken = "" if tower.sizes.endswith("only") else f"; {tower.sizes}"
    size = f"{height}{' only' if tower.sizes.endswith('only') else taken}"
    assert height == width
    return tower.kind, size, " x ".join(map(str, tower.map)), str(tower.token_dim or "none")


def text_cells(architecture: str) -> tuple[str, ...]:
    """Return the cells of a text tower: the tokens computed of the default prompt, and its tokenizer."""
    configuration = named_configuration(architecture)
    try:
        tokens = str(tokens_computed(configuration))
    except ValueError as error:
        return f"refused: {error}", "unknown"
    return tokens, configuration.text.hf_tokenizer_name or OWN_TOKENIZER


@dataclass(frozen=True)
class TowerSummary:
    """What is known of an architecture's visual tower without building it with values."""

    kind: str
    """open_clip's class, and timm's name for a network of timm."""
    map: tuple[int, int, int]
    """Channels, rows and columns of the feature map at `image_size`."""
    token_dim: int | None
    """Dimension of the CLIP's image features; None if they are not one vector."""
    image_size: tuple[int, int]
    """Height and width in pixels of the architecture's own images."""
    sizes: str
    """The image sizes that the tower takes, in words."""


def summarize_tower(architecture: str) -> TowerSummary:
    """Summarize the visual tower of an architecture, without weights.

    Raises:
        ValueError: the architecture is unknown, or its visual tower cannot be a backbone.
    """
    family = OpenClip()
    tower: Any = family.empty(NetworkSpec(architecture))
    traits, size = family.traits(tower), as_height_width(tower.image_size)
    kind = type(tower).__name__
    if traits.only_size is not None:
        sizes = f"{traits.only_size[0]} x {traits.only_size[1]} only"
    else:
        sizes = "any" if traits.side_multiple == 1 else f"multiples of {traits.side_multiple}"
    return TowerSummary(
        f"{kind} {tower.trunk.pretrained_cfg['architecture']}" if isinstance(tower, TimmModel) else kind,
        (traits.channels or 0, *kind_of(tower).cells(tower, size)),
        traits.token_dim,
        size,
        sizes,
    )


if __name__ == "__main__":
    main()
