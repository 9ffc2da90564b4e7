"""Charts as SVG whose colours the page's style decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vqfast.pipeline.pages.html import Markup, tag

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 362, 10, 190  # of the plotted area
POINTS = 400  # of a line; a chart shows no more
COLOURS = 6  # that the style has


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        label: what it is.
        x, y: its points, finite numbers.
        colour: its number among the colours of the style.
        style: how it is drawn: plain, ``"held-out"``, or ``"faint"``, which the legend leaves out.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    style: str = ""


def line_chart(title: str, lines: Sequence[Line], *, log: bool) -> Markup:
    """Lines over the steps, with a legend where there are several.

    Args:
        log: whether the values, all above 0, have a logarithmic scale.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return tag("figure", tag("figcaption", tag("b", title)), tag("p", "No finite value."), class_="chart")
    named = [line for line in lines if line.style != "faint"]
    ends = [f"{line.label} {line.y[-1]:.4g}" for line in named]
    summary = f"{title} over the steps; at the end: {', '.join(ends)}"
    x, y = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    across = _Axis(x.min(), max(x.max(), x.min() + 1), LEFT, RIGHT, log=False)
    up = _Axis(*_padded(y, log), BOTTOM, TOP, log=log)
    drawn = [*_frame(across, up), *(_drawn(line, across, up) for line in lines)]
    svg = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary)
    legend = [tag("li", _swatch(line), end) for line, end in zip(named, ends, strict=True)]
    caption = tag("figcaption", tag("b", title), tag("ul", *legend, class_="legend"))
    return tag("figure", caption, svg, class_="chart")


def usage_chart(title: str, counts: Tensor) -> Markup:
    """How often each code is used, from the most used one to the least, in multiples of an even use."""
    times = np.sort((counts.double() / counts.sum().clamp(min=1) * len(counts)).numpy())[::-1]
    unused = int((counts == 0).sum())
    summary = f"{title}: the most used code {times[0]:.1f} times as often as on average, {unused} never used"
    across = _Axis(0, len(times), LEFT, RIGHT, log=False)
    up = _Axis(0, max(1.5, 1.05 * times[0]), BOTTOM, TOP, log=False)
    places = np.unique(np.linspace(0, len(times) - 1, POINTS).astype(int))
    steps = "".join(f"V{up(times[i]):.1f}H{across(i + 1):.1f}" for i in places)
    area = tag("path", d=f"M{LEFT} {BOTTOM}{steps}V{BOTTOM}Z", class_="area")
    even = tag("line", x1=LEFT, x2=RIGHT, y1=f"{up(1):.1f}", y2=f"{up(1):.1f}", class_="even")
    svg = tag(
        "svg",
        *_frame(across, up),
        area,
        even,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=summary,
    )
    caption = tag("figcaption", tag("b", title), tag("span", "times an even use (dashed)"))
    return tag("figure", caption, svg, class_="chart")


class _Axis:
    """Places values on an axis of the picture, which begins at one coordinate and ends at another."""

    def __init__(self, low: float, high: float, begin: float, end: float, *, log: bool) -> None:
        self.low, self.high, self.begin, self.end, self.log = low, high, begin, end, log

    def __call__(self, value: float | np.ndarray) -> np.ndarray:
        low, high, value = (np.log(v) if self.log else v for v in (self.low, self.high, np.asarray(value)))
        return np.asarray(self.begin + (value - low) / (high - low) * (self.end - self.begin))

    def ticks(self) -> list[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log:
            found = LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(self.low, self.high)
        else:
            found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        inside = [float(tick) for tick in found if self.low - slack <= tick <= self.high + slack]
        return inside if len(inside) <= 7 else [tick for tick in inside if f"{tick:e}".startswith("1.")]


def _frame(across: _Axis, up: _Axis) -> list[Markup]:
    found = [tag("line", x1=LEFT, x2=RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}") for y in map(up, up.ticks())]
    found += [
        tag("text", _number(tick), x=LEFT - 6, y=f"{up(tick) + 4:.1f}", class_="left") for tick in up.ticks()
    ]
    found += [
        tag("text", _number(tick), x=f"{across(tick):.1f}", y=BOTTOM + 18, class_="below")
        for tick in across.ticks()
    ]
    return found


def _drawn(line: Line, across: _Axis, up: _Axis) -> Markup:
    places = np.unique(np.linspace(0, len(line.x) - 1, POINTS).astype(int))
    x, y = across(line.x[places]), up(line.y[places])
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return tag("polyline", points=points if len(x) > 1 else f"{points} {points}", class_=_class(line))


def _swatch(line: Line) -> Markup:
    stroke = tag("line", x1=0, x2=18, y1=5, y2=5, class_=_class(line))
    return tag("svg", stroke, viewBox="0 0 18 10", class_="swatch", aria_hidden="true")


def _class(line: Line) -> str:
    return f"line c{line.colour % COLOURS} {line.style}".rstrip()


def _padded(values: np.ndarray, log: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.1, high * 1.1
    slack = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - slack), high + slack


def _number(value: float) -> str:
    thousands = abs(value) >= 10_000 and value % 100 == 0
    return f"{value / 1000:g}k" if thousands else f"{value:.6g}"
