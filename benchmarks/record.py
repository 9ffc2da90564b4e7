"""The record of a machine: one JSON file under ``results/``, with every sample of every suite."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
Row = dict[str, Any]  # one case of a suite, as core.measure returns it


def path(device: str) -> Path:
    """Where the record of ``device`` is."""
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def paths() -> list[Path]:
    """The records of all machines."""
    return [found for found in sorted(RESULTS.glob("*.json")) if "suites" in read(found)]


def read(where: Path) -> Record:
    """The record at ``where``; an empty one if there is no file."""
    record: Record = json.loads(where.read_text()) if where.exists() else {}
    return record


def add(where: Path, device: str, suites: Mapping[str, object]) -> None:
    """Writes ``suites`` into the record at ``where``; its other suites stay."""
    record = read(where)
    where.parent.mkdir(parents=True, exist_ok=True)
    known = {**record.get("suites", {}), **suites}
    text = json.dumps({**record, "device": device, "suites": known}, indent=1)
    # a list of samples on one line
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    where.write_text(text + "\n")


def median(row: Row) -> dict[str, float]:
    """The median time of each contender in seconds, vqfast first."""
    return {name: statistics.median(samples) for name, samples in row["seconds"].items()}


def quartiles(samples: list[float]) -> tuple[float, float]:
    """The lower and the upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0]
    lower, _, upper = statistics.quantiles(samples, method="inclusive")
    return lower, upper


def curves(record: Record, name: str) -> dict[str, list[Row]]:
    """The growth curves of a suite: by axis, the cases along it."""
    found: dict[str, list[Row]] = {}
    for row in record["suites"][name]["rows"]:
        if row["sweep"]:
            found.setdefault(row["sweep"], []).append(row)
    return found


def pictures(record: Record) -> Iterator[tuple[str, list[str]]]:
    """The names of a record's pictures, and the suites that each one shows."""
    untimed = ("first_result", "degenerate", "training", "mnist", "hierarchy", "speech")
    timed = [name for name in record["suites"] if name not in untimed]
    if timed:
        yield "ratios", timed
    for name in record["suites"]:
        if curves(record, name):
            yield f"growth-{name}", [name]
    if "first_result" in record["suites"]:
        yield "first-result", ["first_result"]


def picture_path(where: Path, picture: str) -> Path:
    """The file of a picture of the record at ``where``."""
    return where.with_name(f"{where.stem}-{picture}.png")
