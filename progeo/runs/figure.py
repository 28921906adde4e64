"""Draw charts as a picture, PNG or SVG, with matplotlib."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.atomic import replacing
from progeo.pages.charts import NUM_STYLES, Chart
from progeo.printable import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#0060a8", "#b04600", "#00755a", "#9c3f7b", "#7a5c00", "#3d3d8f", "#a3243b", "#4d5660")
_DASHES = ("solid", (0, (7, 3)), (0, (2, 2)), (0, (9, 3, 2, 3)), (0, (12, 4)), (0, (4, 4)), (0, (1, 3)), "dashdot")
"""Colors and dashes of series, as on pages."""
_COLUMNS = 2
_WIDTH_IN, _ROW_IN = 11.0, 3.2
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "progeo",  # or identifiers in an SVG would be random
    "text.parse_math": False,  # names are no formulas
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_figure(path: Path) -> None:
    """Check that matplotlib is installed.

    Raises:
        ValueError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            f"`out` {path.name} needs matplotlib: pip install 'progeo[plot]', or name a page, such as "
            f"{path.with_suffix('.html').name}."
        ) from None


def write_figure(path: Path, sections: Mapping[str, Sequence[Chart]]) -> None:
    """Draw the charts of each section below its heading and write the picture, the same bytes for the same charts.

    Args:
        path: .png or .svg file.
        sections: charts by heading.
    """
    import matplotlib
    from matplotlib.figure import Figure

    num_rows = [max(1, -(-len(charts) // _COLUMNS)) for charts in sections.values()]
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn instead
        figure = Figure((_WIDTH_IN, _ROW_IN * sum(num_rows) + 0.5 * len(num_rows)), layout="constrained")
        parts = figure.subfigures(len(sections), 1, height_ratios=num_rows, squeeze=False)[:, 0]
        for part, rows, (heading, charts) in zip(parts, num_rows, sections.items(), strict=True):
            part.suptitle(escaped(heading), fontsize=12, fontweight="bold")
            axes = part.subplots(rows, _COLUMNS, squeeze=False).ravel()
            for each, chart in zip(axes, charts, strict=False):
                _draw(each, chart)
            for each in axes[len(charts) :]:
                each.set_axis_off()
        kind = path.suffix.lower().removeprefix(".")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})


def _draw(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, series in enumerate(chart.series):
        if not series.x:
            continue
        style = index % NUM_STYLES
        few = "o" if len(series.x) <= 60 else ""
        axes.plot(series.x, series.y, color=_COLORS[style], linestyle=_DASHES[style], marker=few, markersize=3)
    axes.set_title(escaped(chart.title), loc="left")
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(color="#d1d9e0", linewidth=0.6)
    if len(chart.series) > 1:
        # matplotlib leaves out names that begin with an underscore.
        axes.legend(
            axes.lines,
            [f"\u200a{escaped(series.name)}" for series in chart.series if series.x],
            frameon=False,
            fontsize=8,
            handlelength=3,
        )
