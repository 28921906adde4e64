"""Show the words nearest to the learned prompts."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

if TYPE_CHECKING:
    from progeo.training.prompt_words import PromptWords


def show_prompts(
    run: Path,
    *,
    at: tuple[float, float] | tuple[float, float, float] | None = None,
    num_words: PositiveInt = 5,
    out: Path | None = None,
    spreadsheet_safe: bool = False,
) -> "PromptWords":
    """Find the words nearest to the learned vectors and write them as a CSV.

    Args:
        run: Folder of the run that learned the prompts.
        at: East and north of a place in UTM meters, and optionally the heading in degrees, as in
            --at 549130,4180920,90. Shows only the classes there; null shows all classes.
        num_words: Number of nearest words for each learned vector.
        out: CSV file to write. null writes prompts.csv next to the prompts.
        spreadsheet_safe: Write an apostrophe in front of words that a spreadsheet would run as a formula: those that
            begin with =, +, - or @ and are no numbers.

    Raises:
        FileNotFoundError: the run has no prompts.
        ValueError: there is no class at the point, or the weights of the CLIP changed.
    """
    from progeo.training.prompt_words import nearest_prompt_words

    return nearest_prompt_words(run, at=at, num_words=num_words, out=out, spreadsheet_safe=spreadsheet_safe)
