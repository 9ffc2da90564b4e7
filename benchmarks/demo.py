"""The record of the demo: ``results/demo-digits.json``, and the picture beside it.

``python -m benchmarks.demo`` runs the demo with three seeds. It records the first seed's figures and samples,
and of each seed what docs/pipeline.md promises. A run goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks import machine
from benchmarks.machine import ROOT
from benchmarks.record import RESULTS
from vqfast.pipeline import joined
from vqfast.pipeline.demo import run_demo

RUNS = ROOT / "runs" / "demo"
SEEDS = (0, 1, 2)


def record(folder: Path = RESULTS) -> None:
    """Runs the demo, and writes the record and the picture into ``folder``."""
    with joined("auto") as ranks:
        metrics = [run_demo(RUNS / f"{seed}", ranks, seed=seed) for seed in SEEDS]
    first = RUNS / f"{SEEDS[0]}"
    timings = json.loads((first / "timings.json").read_text())
    seeds = [
        {
            "seed": seed,
            "classifier_agrees_with_requested_label": found["classifier_agrees_with_requested_label"],
            "psnr": found["reconstruction_held_out"]["psnr"],
        }
        for seed, found in zip(SEEDS, metrics, strict=True)
    ]
    text = json.dumps({"device": machine.name(), **metrics[0], **timings, "seeds": seeds}, indent=1)
    (folder / "demo-digits.json").write_text(text + "\n")
    shutil.copy(first / "samples.png", folder / "demo-digits.png")
    print(text)


if __name__ == "__main__":
    record()
