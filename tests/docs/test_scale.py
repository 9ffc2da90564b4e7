"""The plan in docs/scale.md: its numbers are what its block computes, from the rates of the record."""

from __future__ import annotations

import contextlib
import io
import json
import statistics

from tests.docs.pages import ROOT


def test_the_plan_is_what_its_block_computes_from_the_record() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    code, text = (page.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "text"))
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        exec(code, names)
    assert said.getvalue() == text
    record = json.loads((ROOT / "benchmarks" / "results" / "2-cores-amd-epyc.json").read_text("utf-8"))
    measured = {row["case"]: row for suite in record["suites"].values() for row in suite["rows"]}
    cases = {
        "tokenise": ("tokenise, 256 images, 32x32", 256),
        "sample": ("gated 32x32, 128 channels, 15 layers, batch 16", 16),
    }
    for rate, (case, items) in cases.items():
        seconds = statistics.median(measured[case]["seconds"]["vqfast"])
        assert abs(names["record"][rate] * seconds / items - 1) < 0.01, rate
    flop = measured["tokenise, 256 images, 32x32"]["floor"]["flop"]
    assert abs(names["flop"] / (flop / 256 * 64) - 1) < 0.001
