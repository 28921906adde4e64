"""Write the table of several encoders that were evaluated on the same query set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from progeo.engine.log import LOGGER
from progeo.files import write_csv, write_json, write_text
from progeo.printable import markdown_table


@dataclass(frozen=True)
class Compared:
    """Results of one encoder, a row of the table."""

    encoder: str
    descriptor_dim: int
    images_per_second: float | None
    """Extraction speed of the network on decoded images; None for descriptors of another program."""
    search_ms: float
    """Duration of an exact search, and of re-ranking if it is wanted, in milliseconds per query."""
    recalls: dict[int, float]
    """Recall in percent, by N."""
    measure: str = "R"
    """Name of recall: R of R@N, or LR of LR@N, localization recall."""


@dataclass(frozen=True)
class Comparison:
    """The table of all encoders."""

    rows: tuple[Compared, ...]
    text: str
    """The table in Markdown."""

    def __str__(self) -> str:
        return self.text.rstrip("\n")


def write_comparison(out: Path, table: Sequence[Compared], *, spreadsheet_safe: bool = False) -> Comparison:
    """Write compare.json, compare.csv (see `write_csv`) and compare.md to a folder."""
    rows = [
        [
            "encoder",
            "dimensions",
            "images/s",
            "search, ms per query",
            *(f"{table[0].measure}@{n}" for n in table[0].recalls),
        ]
    ]
    for each in table:
        speed = "" if each.images_per_second is None else f"{each.images_per_second:.1f}"
        percents = [f"{recall:.1f}" for recall in each.recalls.values()]
        rows.append([each.encoder, str(each.descriptor_dim), speed, f"{each.search_ms:.2f}", *percents])
    write_json(out / "compare.json", [asdict(each) for each in table])
    write_csv(out / "compare.csv", rows, spreadsheet_safe=spreadsheet_safe)
    text = markdown_table(rows, num_texts=1)
    write_text(out / "compare.md", text)
    LOGGER.info("table: %s", out / "compare.md")
    return Comparison(tuple(table), text)
