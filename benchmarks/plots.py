"""Pictures of a record. Each holds a digest of what it shows; a test compares it with the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.record import Record, Row, curves, median, picture_path, pictures, quartiles, read

Colour = tuple[float, ...]
KEY = "Record"  # of the digest in a picture's metadata
COLOURS = [plt.get_cmap("tab20")(i) for i in (*range(0, 20, 2), *range(1, 20, 2))]


def digest(record: Record, suites: list[str]) -> str:
    """The digest of the suites that a picture shows."""
    shown = {name: record["suites"][name]["rows"] for name in suites}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def draw(where: Path) -> list[Path]:
    """Draws all pictures of the record at ``where``, beside it."""
    record, drawn = read(where), []
    for picture, suites in pictures(record):
        if picture == "ratios":
            figure = ratios(record, suites)
        elif picture == "first-result":
            figure = first_result(record)
        else:
            figure = growth(record, suites[0])
        drawn.append(picture_path(where, picture))
        figure.savefig(drawn[-1], dpi=110, metadata={KEY: digest(record, suites), "Software": None})
        plt.close(figure)
    return drawn


def colours(names: Iterable[str]) -> dict[str, Colour]:
    """A colour for each contender; vqfast always has the first."""
    unique = list(dict.fromkeys(["vqfast", *names]))
    return dict(zip(unique, COLOURS, strict=False))


def ratios(record: Record, suites: list[str]) -> Figure:
    """A line for each case, with a dot for each peer: how many times vqfast's time it takes."""
    lines: list[tuple[str, Row | None]] = []
    for name in suites:
        lines.append((name.replace("_", " "), None))
        lines += [(row["case"], row) for row in record["suites"][name]["rows"] if not row["sweep"]]
    colour = colours([peer for _, row in lines if row for peer in row["seconds"]])
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.24 * len(lines)), layout="constrained")
    for y, (_, row) in enumerate(lines):
        if row is None:
            continue
        axes.axhline(y, color="0.93", zorder=0)
        times = median(row)
        for peer, took in times.items():
            if peer != "vqfast":
                marker = "x" if peer.startswith("vqfast") else "o"  # no peer
                axes.plot(took / times["vqfast"], y, marker, color=colour[peer], label=peer)
    axes.axvline(1, color=colour["vqfast"], label="vqfast")
    axes.set(
        xscale="log", ylim=(len(lines) - 0.5, -0.7), xlabel="times as long as vqfast (left of 1: faster)"
    )
    axes.set_yticks(range(len(lines)), [label for label, _ in lines], fontsize=8)
    for tick, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if row else "bold")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_title(record["device"])
    _legend(axes)
    return figure


def growth(record: Record, name: str) -> Figure:
    """Time along each axis: medians, quartiles and the floor."""
    found = curves(record, name)
    colour = colours([who for rows in found.values() for row in rows for who in row["seconds"]])
    figure, every = plt.subplots(
        1, len(found), figsize=(4.2 * len(found), 4), layout="constrained", squeeze=False
    )
    for axes, (axis, rows) in zip(every[0], found.items(), strict=True):
        rows = sorted(rows, key=lambda row: row["shape"][axis])
        sizes = [row["shape"][axis] for row in rows]
        for who in rows[0]["seconds"]:
            axes.plot(sizes, [median(row)[who] for row in rows], ".-", color=colour[who], label=who)
            spread = list(zip(*(quartiles(row["seconds"][who]) for row in rows), strict=True))
            axes.fill_between(sizes, *spread, color=colour[who], alpha=0.2)
        if rows[0]["floor"]:
            axes.plot(sizes, [row["floor"]["seconds"] for row in rows], "k--", lw=1, label="floor")
        first = rows[0]["shape"]
        fixed = [f"{key} {size}" for key, size in first.items() if key != axis]
        axes.set(xscale="log", yscale="log", xlabel=f"{axis} ({', '.join(fixed)})", ylabel="seconds")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(color="0.93")
    _legend(every[0][0])
    figure.suptitle(f"{name.replace('_', ' ')}: {record['device']}")
    return figure


def first_result(record: Record) -> Figure:
    """Seconds from a process's start to its first codes."""
    rows = record["suites"]["first_result"]["rows"]
    dots = [
        (f"{who}, {row['case'].split(', ')[1]}", who, took)
        for row in rows
        for who, took in median(row).items()
    ]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(dots)), layout="constrained")
    for y, (_, who, took) in enumerate(dots):
        axes.axhline(y, color="0.93", zorder=0)
        axes.plot(took, y, "o", color=COLOURS[who != "vqfast"])
        axes.annotate(f"{took:.3g} s", (took, y), (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(dots)), [label for label, *_ in dots])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds from a process's start to its first codes", title=record["device"])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.margins(x=0.15, y=0.15)
    return figure


def _legend(axes: Axes) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8)
