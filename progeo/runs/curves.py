"""Charts of runs over one another."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from progeo.pages.charts import Chart, Series
from progeo.runs.reading import MAX_POINTS, Line, Stage, lines

_MEMORY_TITLES = {"device_memory_bytes": "Peak memory of the GPU", "memory_bytes": "Memory of the process"}


def charts_of(stages: Sequence[Stage]) -> list[Chart]:
    """Return the charts of the same stage of several runs."""
    losses, rates = _all(stage.losses for stage in stages), _all(stage.rates for stage in stages)
    charts = [_chart(stages, name, _title(name), y_label="loss") for name in losses]
    if not all(stage.steps for stage in stages):  # of an earlier version, or `log_every` null
        charts += [_chart(stages, name, _title(name), y_label="loss", of_epochs=True) for name in losses]
    charts += [_chart(stages, name, _title(name), y_label="learning rate") for name in rates]
    charts.append(_validation(stages))
    costs = [_chart(stages, "images_per_s", "Throughput", y_label="images/s")]
    costs += [_chart(stages, name, title, y_label="GB", scale=1e-9) for name, title in _MEMORY_TITLES.items()]
    return [*filter(_has_points, charts), *(_from_zero(chart) for chart in costs if _has_points(chart))]


def averaged_in_words(stages: Sequence[Stage]) -> str:
    """Say which points are means of several rows; empty if none are."""
    longest = max((line.num_rows for line in lines(stages, "loss")), default=0)
    if longest <= MAX_POINTS:
        return ""
    return (
        f"Lines have at most {MAX_POINTS} points: the longest has {longest:,} rows, and each point is a mean of them."
    )


def _has_points(chart: Chart) -> bool:
    return any(series.x for series in chart.series)


def _from_zero(chart: Chart) -> Chart:
    return replace(chart, y_range=(0.0, 1.06 * max(y for series in chart.series for y in series.y) or 1.0))


def _validation(stages: Sequence[Stage]) -> Chart:
    """Draw all measures of a single run, and the primary one of several."""
    if len(stages) > 1 or len(stages[0].groups) > 1:
        first = next((stage.measures[0] for stage in stages if stage.measures), "")
        return _chart(stages, first, _title(first), y_label="percent", of_epochs=True)
    measured = [_series(each, name=name) for name in stages[0].measures for each in lines(stages, name, of_epochs=True)]
    return Chart("Validation", "epoch", "percent", measured)


def _chart(
    stages: Sequence[Stage], name: str, title: str, *, y_label: str, of_epochs: bool = False, scale: float = 1.0
) -> Chart:
    found = lines(stages, name, of_epochs=of_epochs, scale=scale)
    return Chart(title, "epoch" if of_epochs else "step", y_label, [_series(line) for line in found])


def _series(line: Line, *, name: str | None = None) -> Series:
    return Series(line.name if name is None else _title(name), line.x, line.y)


def _all(names: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for some in names for name in some))


def _title(name: str) -> str:
    """Write the name of a quantity as the title of its chart."""
    words = name.removeprefix("val ").replace("_", " ")
    return words[:1].upper() + words[1:]
