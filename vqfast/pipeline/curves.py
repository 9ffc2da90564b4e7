"""Curves of a training, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

LINE = "#2f6db3"


def draw_curves(history: Mapping[str, Sequence[float | None]], *, title: str) -> bytes:
    """A panel for each metric over the steps, as a PNG; the same history gives the same bytes.

    Series of more than 60 points are drawn faint under a smoothed line; losses that fall tenfold get a
    logarithmic scale; values that are None or not finite are left out.

    Args:
        history: the name of a metric -> its values, as many as there are steps; ``step`` -> the steps.
        title: above all panels.

    Raises:
        ValueError: there is nothing to draw, or the lengths differ.

    >>> draw_curves({"step": [0, 10], "loss": [2.0, 1.0]}, title="prior")[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps = np.asarray(history.get("step", []), dtype=np.int64)
    metrics = {name: np.asarray(column, np.float64) for name, column in history.items() if name != "step"}
    if not metrics or not len(steps):
        raise ValueError(
            f"history has {len(metrics)} metrics at {len(steps)} steps; want one or more of both"
        )
    for name, values in metrics.items():
        if len(values) != len(steps):
            raise ValueError(
                f"history has {len(values)} values of {name!r}; want {len(steps)}, one for each step"
            )
    columns = {1: 1, 2: 2, 4: 2}.get(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    figure.suptitle(title, fontsize=13, fontweight="bold", color="#222222", parse_math=False)
    for place, (name, values) in enumerate(metrics.items(), start=1):
        panel = figure.add_subplot(rows, columns, place)
        finite = np.isfinite(values)
        x, y = steps[finite], values[finite]
        log = is_loss(name) and len(y) > 0 and y.min() > 0 and y.max() > 10 * y.min()
        if len(y) > 60:
            panel.plot(x, y, color=LINE, alpha=0.25, linewidth=0.8)
            panel.plot(x, smooth(y, log=log), color=LINE, linewidth=1.8)
        else:
            panel.plot(x, y, color=LINE, linewidth=1.6, marker="o", markersize=3.5)
        if log:
            panel.set_yscale("log")
        panel.set_title(name, loc="left", fontsize=11, color="#222222", parse_math=False)
        last = f"last {y[-1]:.4g}" if len(y) else "no finite value"
        panel.set_title(last, loc="right", fontsize=9, color="#777777")
        panel.set_xlabel("step", fontsize=9, color="#555555")
        panel.set_ylabel(name, fontsize=9, color="#555555", parse_math=False)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.tick_params(labelsize=8, colors="#555555", which="both")
        panel.grid(color="#e4e6ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color("#b0b4bb")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def smooth(values: np.ndarray, *, log: bool) -> np.ndarray:
    """A moving average, weighted by a bell over a 25th of the series, renormalised at the ends.

    Args:
        log: whether the logarithms are smoothed, as a logarithmic scale shows them.
    """
    if log:
        return np.asarray(np.exp(smooth(np.log(values), log=False)))
    bell = np.hanning(len(values) // 25 + 3)
    return np.convolve(values, bell, "same") / np.convolve(np.ones(len(values)), bell, "same")


def is_loss(name: str) -> bool:
    return any(word in name.lower() for word in ("loss", "mse", "error", "nll"))
