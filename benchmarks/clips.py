"""Print the CLIPs of open_clip as a table: how each visual tower is a backbone, and how its prompts are encoded.

Run `python -m benchmarks.clips`; the result is the table of docs/clips.md. No weights are needed.
"""

import open_clip

from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.open_clip import summarize_tower
from progeo.models.text_towers.acceptance import describe

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
        tokens = str(describe(configuration))
    except ValueError as error:
        return f"refused: {error}", "unknown"
    return tokens, configuration.text.hf_tokenizer_name or OWN_TOKENIZER


if __name__ == "__main__":
    main()
