"""The record of a device: one JSON file under ``results/``, with every sample of every suite."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
Row = dict[str, Any]


def path(device: str) -> Path:
    """Where the record of ``device`` is."""
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def paths() -> list[Path]:
    """Of all devices."""
    return [found for found in sorted(RESULTS.glob("*.json")) if "suites" in read(found)]


def read(where: Path) -> Record:
    """The record at ``where``, an empty one if there is none."""
    return json.loads(where.read_text()) if where.exists() else {}


def add(where: Path, device: str, suites: Mapping[str, object]) -> None:
    """Writes or replaces ``suites`` in the record; each says when and with what it was measured."""
    record = read(where)
    where.parent.mkdir(parents=True, exist_ok=True)
    known = {**record.get("suites", {}), **suites}
    text = json.dumps({**record, "device": device, "suites": known}, indent=1)
    # a list of samples on one line
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    where.write_text(text + "\n")


def median(row: Row) -> dict[str, float]:
    """Seconds of each contender, ours first."""
    return {name: statistics.median(samples) for name, samples in row["seconds"].items()}


def quartiles(samples: list[float]) -> tuple[float, float]:
    """Between which half of the samples lie."""
    if len(samples) < 2:
        return samples[0], samples[0]
    lower, _, upper = statistics.quantiles(samples, method="inclusive")
    return lower, upper
