"""Charts of a page as inline SVG: lines and points over an axis of numbers, and bars over labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

WIDTH, HEIGHT = 560, 300
"""Size of the drawing in its own units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 46
"""Space around the axes, for their labels."""
_NOTE = 18
"""Space for notes below the labels of bars."""
_NUM_TICKS = 5
_APART = 16
"""Mean distance of the points of a line that are drawn large."""
NUM_STYLES = 8
"""Number of colors and dashes of series, after which they repeat."""


@dataclass(frozen=True)
class Series:
    """Points of a chart, joined by a line or not."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower ends of the intervals of y, drawn as a band around the line; None draws none."""
    high: Sequence[float] | None = None
    kind: Literal["line", "points", "reference"] = "line"
    """A reference is drawn dashed and quiet."""
    labels: Sequence[str] | None = None
    """Text beside each point; None writes none."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    position: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A series in the units of the drawing."""

    name: str
    kind: str
    style: int
    """Number of its color and dash."""
    points: Sequence[tuple[float, float, str, str]]
    """x, y, what its tooltip says, and the text beside it."""
    line: str
    """Points of a polyline; empty without a line."""
    band: str
    """Points of the polygon between low and high; empty without an interval."""

    @property
    def radius(self) -> float:
        """Radius of the points: they are small if there are many, or close together on a line."""
        if self.kind == "points":
            return 4 if len(self.points) <= 60 else 1.5
        across = [x for x, *_ in self.points]
        is_wide = len(across) == 1 or (across and max(across) - min(across) >= _APART * (len(across) - 1))
        return 4 if is_wide else 1.5


@dataclass(frozen=True)
class Chart:
    """Lines and points over an axis of numbers. Points that are not finite are gaps."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    """Whether the x axis is logarithmic; points at or below 0 are gaps then."""
    y_range: tuple[float, float] | None = None
    """Ends of the y axis; None fits the points."""
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def plot(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the area inside the axes."""
        left = _left(_texts(_round_values(*self._y_range)))
        return left, _TOP, self.width - _RIGHT, self.height - _BOTTOM

    @property
    def x_ticks(self) -> list[Tick]:
        """Ticks of the x axis: whole numbers if all x are, and all of them on a logarithmic axis if these are few."""
        low, high = self._x_range
        values = sorted({x for each in self.series for x in each.x if self._is_shown(x)})
        is_whole = all(float(x).is_integer() for x in values)
        if not self.log_x:
            values = [x for x in _round_values(low, high) if not is_whole or float(x).is_integer()]
        elif len(values) > 2 * _NUM_TICKS or not is_whole:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            values = steps if sum(low <= x <= high for x in steps) > 1 else _round_values(low, high)
        ticks = [Tick(self._x(x), _number(x)) for x in values if low <= x <= high]
        return _apart(ticks, 30)

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks of the y axis."""
        values = _round_values(*self._y_range)
        return [Tick(self._y(y), text) for y, text in zip(values, _texts(values), strict=True)]

    @property
    def drawn(self) -> list[Drawn]:
        """The series in the units of the drawing."""
        return [self._drawn(each, index % NUM_STYLES) for index, each in enumerate(self.series)]

    def _drawn(self, series: Series, style: int) -> Drawn:
        rows = [
            row
            for row, (x, y) in enumerate(zip(series.x, series.y, strict=True))
            if self._is_shown(x) and math.isfinite(y)
        ]
        places = [(self._x(series.x[row]), self._y(series.y[row])) for row in rows]
        labels = [""] * len(series.x) if series.labels is None else series.labels
        tips = [self._tip(series, row) for row in rows]
        line = "" if series.kind == "points" else " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        band = ""
        if series.low is not None and series.high is not None:
            lower, upper = (
                [(self._x(series.x[row]), self._y(ends[row])) for row in rows] for ends in (series.low, series.high)
            )
            band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*lower, *reversed(upper)])
        points = [(*place, tip, labels[row]) for place, tip, row in zip(places, tips, rows, strict=True)]
        return Drawn(series.name, series.kind, style, points, line, band)

    def _tip(self, series: Series, row: int) -> str:
        text = f"{series.name}: {_number(series.y[row])} at {_number(series.x[row])}"
        if series.low is None or series.high is None:
            return text
        return f"{text} ({_number(series.low[row])} to {_number(series.high[row])})"

    def _is_shown(self, x: float) -> bool:
        return math.isfinite(x) and (x > 0 or not self.log_x)

    @cached_property
    def _x_range(self) -> tuple[float, float]:
        low, high = _ends(x for each in self.series for x in each.x if self._is_shown(x))
        if low == high:
            return (low / 2, high * 2) if self.log_x else (low - 1, high + 1)
        return low, high

    @cached_property
    def _y_range(self) -> tuple[float, float]:
        if self.y_range is not None:
            return self.y_range
        found = [y for each in self.series for some in (each.y, each.low or (), each.high or ()) for y in some]
        low, high = _ends(y for y in found if math.isfinite(y))
        room = 0.06 * (high - low) or abs(high) / 10 or 1
        return low - room, high + room

    def _x(self, x: float) -> float:
        low, high = self._x_range
        if self.log_x:
            low, high, x = math.log(low), math.log(high), math.log(x)
        left, _, right, _ = self.plot
        # Points do not lie on the axes, where half of them would be cut off.
        return left + 12 + (right - left - 24) * (x - low) / (high - low)

    def _y(self, y: float) -> float:
        low, high = self._y_range
        _, top, _, bottom = self.plot
        return bottom - (bottom - top) * (min(max(y, low), high) - low) / (high - low)


@dataclass(frozen=True)
class Bar:
    """A bar in the units of the drawing."""

    x: float
    y: float
    width: float
    height: float
    style: int
    tip: str


@dataclass(frozen=True)
class Bars:
    """Bars over labels, one for each label and series."""

    title: str
    x_label: str
    y_label: str
    labels: Sequence[str]
    heights: Mapping[str, Sequence[float]]
    """Heights by the name of a series; NaN draws no bar."""
    y_max: float | None = None
    """Upper end of the y axis; None fits the bars."""
    notes: Sequence[str] | None = None
    """A text below each label, such as a number of queries; None writes none."""
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def plot(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the area inside the axes."""
        left = _left(_texts(self._y_values))
        return left, _TOP, self.width - _RIGHT, self.height - _BOTTOM - (_NOTE if self.notes else 0)

    @property
    def x_ticks(self) -> list[Tick]:
        """The labels below the bars, without some if there are too many."""
        return self._ticks(self.labels)

    @property
    def x_notes(self) -> list[Tick]:
        """The notes below the labels, likewise."""
        return self._ticks(self.notes or ())

    def _ticks(self, texts: Sequence[str]) -> list[Tick]:
        longest = max(map(len, texts), default=1)
        return _apart([Tick(self._center(row), text) for row, text in enumerate(texts)], 7 * longest + 8)

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks of the y axis: whole numbers if all bars are."""
        return [Tick(self._y(y), text) for y, text in zip(self._y_values, _texts(self._y_values), strict=True)]

    @property
    def drawn(self) -> list[Bar]:
        """The bars."""
        room = 0.8 * self._step
        width = room / max(len(self.heights), 1)
        _, _, _, bottom = self.plot
        return [
            Bar(
                self._center(row) - room / 2 + number * width,
                self._y(value),
                width,
                bottom - self._y(value),
                number % NUM_STYLES,
                f"{self.labels[row]}, {name}: {_number(value)}" if name else f"{self.labels[row]}: {_number(value)}",
            )
            for number, (name, values) in enumerate(self.heights.items())
            for row, value in enumerate(values)
            if math.isfinite(value)
        ]

    @property
    def _y_values(self) -> list[float]:
        is_whole = all(float(value).is_integer() for values in self.heights.values() for value in values)
        return [y for y in _round_values(0, self._top) if not is_whole or y.is_integer()]

    @property
    def _top(self) -> float:
        if self.y_max is not None:
            return self.y_max
        return max((value for values in self.heights.values() for value in values if value > 0), default=1.0)

    @property
    def _step(self) -> float:
        left, _, right, _ = self.plot
        return (right - left) / max(len(self.labels), 1)

    def _center(self, row: int) -> float:
        return self.plot[0] + (row + 0.5) * self._step

    def _y(self, value: float) -> float:
        _, top, _, bottom = self.plot
        return bottom - (bottom - top) * min(value / self._top, 1)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return (min(found), max(found)) if found else (0.0, 1.0)


def _round_values(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _apart(ticks: Sequence[Tick], distance: float) -> list[Tick]:
    """Drop ticks so that all are at least this far apart."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.position - kept[-1].position >= distance:
            kept.append(tick)
    return kept


def _left(texts: Sequence[str]) -> float:
    """Return the space on the left of an axis with these texts."""
    return max(_LEFT, 30 + 10 * max(map(len, texts), default=0))  # texts are larger on a phone


def _texts(values: Sequence[float]) -> list[str]:
    """Format the numbers of an axis with as few digits as tell them apart."""
    of_digits = ([_number(value, digits) for value in values] for digits in range(4, 16))
    return next((texts for texts in of_digits if len(set(texts)) == len(texts)), [_number(each) for each in values])


def _number(value: float, digits: int = 4) -> str:
    """Format a number with at most so many significant digits, and below 10^12 with all digits before its point."""
    text = f"{value:,.0f}" if 10 ** (digits - 1) <= abs(value) < 1e12 else f"{value:.{digits}g}"
    return "0" if text == "-0" else text
