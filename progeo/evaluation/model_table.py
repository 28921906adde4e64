"""Write the table of models: what each encoder is, its speed and recall, and published recalls beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from progeo.evaluation.comparison import Compared
from progeo.evaluation.protocols import Published
from progeo.files import write_text
from progeo.printable import markdown_table

_NUM_TEXTS = 5
"""Number of columns before the numbers."""


@dataclass(frozen=True)
class Model:
    """What an encoder is; "" or None for what is not known."""

    backbone: str = ""
    num_parameters: int | None = None
    image_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    training_data: str = ""
    code_license: str = ""
    weights_license: str = ""


def write_models(
    file: Path,
    table: Sequence[Compared],
    models: Mapping[str, Model],
    published: Mapping[str, Sequence[tuple[Published, Model]]],
) -> None:
    """Write a table of each data set: encoders as measured, then published recalls, which say so.

    Args:
        table: what `compare_evaluated` returned.
        models: what each encoder of the table is, by its name.
        published: recalls that are published for each data set, by its name, with what is known of the weights.
    """
    parts = []
    for name in dict.fromkeys(row.data for row in table):
        here = [row for row in table if row.data == name]
        n, measure = here[0].first_n, here[0].measure
        rows = [_cells(models[row.encoder], _measured(row)) for row in here]
        rows += [_cells(model, _published(each, n)) for each, model in published[name] if n in each.recalls]
        names = {"recall": f"{measure}@{n}", "interval": f"95 % of {measure}@{n}"}
        header = [names.get(column, column) for column in rows[0]]
        parts.append(
            f"## {name}\n\n{markdown_table([header, *map(list, map(dict.values, rows))], num_texts=_NUM_TEXTS)}"
        )
    write_text(file, "\n".join(parts))


def _cells(model: Model, result: Mapping[str, str]) -> dict[str, str]:
    """Return the cells of a row by the names of their columns; `?` where something is not known."""
    size = "" if model.image_size is None else "{} x {}".format(*model.image_size)
    cells = {
        "model": result["model"],
        "backbone": result.get("backbone", model.backbone),
        "training data": model.training_data,
        "license of code": model.code_license,
        "license of weights": model.weights_license,
        "parameters, M": "" if model.num_parameters is None else f"{model.num_parameters / 1e6:.1f}",
        "image, px": size,
        **{name: result.get(name, "") for name in ("dimensions", "images/s", "ms per query", "recall", "interval")},
        "numbers": result["numbers"],
    }
    return {name: cell or "?" for name, cell in cells.items()}


def _measured(row: Compared) -> dict[str, str]:
    """Return what was measured of an encoder."""
    low, high = row.intervals[row.first_n]
    return {
        "model": row.encoder,
        "dimensions": f"{row.descriptor_dim:,}",
        "images/s": "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
        "ms per query": "" if row.total_ms is None else f"{row.total_ms:.2f}",
        "recall": f"{row.recalls[row.first_n]:.1f}",
        "interval": f"{low:.1f} to {high:.1f}",
        "numbers": "measured",
    }


def _published(row: Published, n: int) -> dict[str, str]:
    """Return what is published of a method."""
    return {
        "model": row.method,
        "backbone": row.backbone,
        "dimensions": f"{row.dim:,}",
        "recall": f"{row.recalls[n]:.1f}",
        "numbers": "; ".join(text for text in (f"published: {row.source}", row.remark) if text),
    }
