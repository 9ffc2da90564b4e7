"""What passed where: ``records/*.json``, one a GPU model, by ``python -m benchmarks --gpu-gate``.

``device``: the model's name; ``passed``: by backend, the ops (and ``"sampler"``) whose tests all passed.
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
    """Whether a record shows that ``backend``'s ``op`` passed on the device model of that name."""
    return op in _read(FOLDER).get(device, {}).get(backend, [])
