"""The table of predictions: made from counts, and the page has it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

from benchmarks import predict


def test_the_page_has_the_table_of_the_counts() -> None:
    shown = predict.PAGE.read_text(encoding="utf-8").split(predict.BEGIN)[1].split(predict.END)[0]
    assert shown == predict.table(json.loads(predict.COUNTS.read_text()))


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
