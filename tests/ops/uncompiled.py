"""What Triton would compile, which it tells a hook; nothing is compiled, and no kernel runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.compiled import target_of
from vqfast.sampling.executors import triton as sampler


@contextmanager
def asked_for_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """By kernel what Triton would compile for an H100, as tensors on the CPU are given to it."""
    from triton import knobs
    from triton.runtime import driver

    found: dict[str, set[str]] = {}

    def hook(*, key: str, fn: Any, **_: Any) -> bool:
        found.setdefault(fn.name.rpartition(".")[2], set()).add(key)
        return True  # which leaves it uncompiled

    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", hook)
    monkeypatch.setattr(
        Tensor, "new_empty", Tensor.new_zeros
    )  # no kernel writes results, and some are indices
    monkeypatch.setattr(sampler, "members_of", lambda launch, groups, _: min(launch.members, 132 // groups))
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target_of("sm_90"),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    yield found
    if torch.cuda.is_available():
        driver.reset_active()
