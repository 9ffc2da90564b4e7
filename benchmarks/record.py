"""One JSON record a benchmark and device, under ``results/``."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch

import vqfast

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """What a record says of where it was measured."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    cpu = found.group(1) if found else platform.processor()
    return {
        "device": f"{torch.get_num_threads()} cores, {cpu}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "vqfast": vqfast.__version__,
    }


def write(name: str, figures: dict[str, object], table: Callable[[Path], str]) -> None:
    """Writes ``results/<name>-<device>.json`` and prints its table."""
    record = machine() | figures
    slug = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    path = RESULTS / f"{name}-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{table(path)}\n\nwritten to {path}")
