"""What is compiled by torch's own compiler, C++ and all, in every version of the table."""

from __future__ import annotations

import copy

import pytest
import torch

import vqfast


@pytest.mark.slow
def test_a_training_step_is_one_graph_of_the_default_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False, raising=False)
    vq = vqfast.VQLayer(9, 6, kmeans_init=False, decay=0.9, revive_below=0.0)  # draws nothing
    compiled = copy.deepcopy(vq)
    z_e = torch.randn(3, 6, 4)
    torch.testing.assert_close(tuple(torch.compile(compiled, fullgraph=True)(2 * z_e)), tuple(vq(2 * z_e)))
    torch.testing.assert_close(compiled.state_dict(), vq.state_dict())
