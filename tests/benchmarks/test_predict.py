"""The table of predictions: made from counts, and the page has it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import predict
from vqfast import PixelCNN
from vqfast.ops import registry
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import triton as executor
from vqfast.sampling.executors.triton_tunings import SAMPLING
from vqfast.sampling.request import Request


def test_the_page_has_the_table_of_the_counts() -> None:
    shown = predict.PAGE.read_text(encoding="utf-8").split(predict.BEGIN)[1].split(predict.END)[0]
    assert shown == predict.table(json.loads(predict.COUNTS.read_text()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel can't be compiled")
@pytest.mark.parametrize(
    "counted",
    [
        pytest.param(name, marks=[pytest.mark.every] * (name != "sm_90 64"))
        for name in json.loads(predict.COUNTS.read_text())["search"]
    ],
)
def test_counts_of_the_search_are_those_of_its_kernels(counted) -> None:
    import triton

    kept = json.loads(predict.COUNTS.read_text())
    if triton.__version__ != kept["triton"]:
        pytest.skip(f"counted with Triton {kept['triton']}")
    arch, channels = counted.split()
    assert predict.search_counts(arch, int(channels)) == kept["search"][counted]


@pytest.mark.parametrize("name", predict.SAMPLES)
def test_counts_of_the_sampler_are_those_of_its_plans(name) -> None:
    found = json.loads(predict.COUNTS.read_text())["sampler"]
    assert found[name] == predict.jobs_of(*predict.SAMPLES[name])


def test_counts_of_a_peer_that_is_not_installed_are_kept_with_their_versions(monkeypatch, tmp_path) -> None:
    kept = {
        "version": "0.3.1",
        "triton": "3.9.0",
        "(131072, 512, 64)": {"full": 2.0, "other": 5, "vectors": 128},
    }
    monkeypatch.setattr(predict, "COUNTS", tmp_path / "kernels.json")
    predict.COUNTS.write_text(json.dumps({"flash-kmeans": kept}))
    monkeypatch.setitem(sys.modules, "flash_kmeans", None)  # an import of it fails
    assert predict.peer_counts() == kept
    real = json.loads((predict.RESULTS / "kernels.json").read_text())
    assert f"flash-kmeans {real['flash-kmeans']['version']} assign" in predict.table(real)


def test_a_search_is_no_faster_than_its_slowest_part_and_no_slower_than_all_parts_one_by_one() -> None:
    gpu = predict.GPUS["H100"]
    counts = {"search": {"sm_90 64": {"full": 1.0, "other": 2.0, "vectors": 128}}}
    *_, launches, time = predict.search_times(gpu, (131072, 512, 64), 0.0, counts)
    scores = 131072 * 512 / (132 * 1.7e9)
    arithmetic = scores * (1 / 128 + 2 / 64)
    cache = 131072 // 128 * 512 * 64 * 2 / 5.5e12  # each block reads the codebook: the slowest part
    assert launches == "2"
    assert time.split(" to ")[0] == predict._time(max(arithmetic, cache) + 4e-6)
    assert float(time.split(" to ")[1].split()[0]) > float(time.split()[0])


def test_launches_and_moments_of_rows_side_by_side_are_those_of_a_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, found = "batch 1, 64x64, rows side by side", json.loads(predict.COUNTS.read_text())["sampler"]
    launched: list[tuple[int, int]] = []

    def launch(
        self: Any, tables: Any, begin: int, end: int, moment: int, iterations: int, columns: int
    ) -> None:
        launched.append((iterations, end - begin))

    monkeypatch.setattr(executor.Sampling, "launch", launch)
    monkeypatch.setattr(executor, "tunings_of", lambda weight: SAMPLING[2]["sm_90"])
    program, weights = PixelCNN(512, 128, 15).to(torch.bfloat16).lower()
    known = torch.zeros(1, 64, 64, 1, dtype=torch.int64)
    executor.run(Request(program, weights, Draw(0, torch.arange(1)), known, None, None, lambda codes: codes))
    assert len(launched) == found[name]["launches"]
    jobs = found[name]["moments"] * found[name]["jobs"] + found[name]["chunks"] * found[name]["row jobs"]
    assert sum(iterations * number for iterations, number in launched) == jobs
