"""Which ops passed their tests on which GPU model: ``records/*.json``, one file for each model.

``python -m benchmarks --gpu-gate`` writes them. ``device`` is the model's name; ``passed`` has, by backend,
the ops (the sampler is one) whose tests all passed.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

FOLDER = Path(__file__).with_name("records")


@functools.cache
def _read(folder: Path) -> dict[str, dict[str, list[str]]]:
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return {record["device"]: record["passed"] for record in found}


def passed(op: str, backend: str, device: str) -> bool:
    """Whether a record shows that ``backend``'s ``op`` passed on the model with the name ``device``."""
    return op in _read(FOLDER).get(device, {}).get(backend, [])
