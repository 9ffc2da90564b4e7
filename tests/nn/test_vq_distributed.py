"""Three gloo processes against one on the joined batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("vq_ranks.py")
_spec = importlib.util.spec_from_file_location("vq_ranks", SCRIPT)
vq_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(vq_ranks)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> list[dict]:
    """Every case's state on all ranks; a hang runs into the timeout."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, rank, str(folder)], stderr=subprocess.PIPE, env=environment)
        for rank in map(str, range(vq_ranks.WORLD))
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(vq_ranks.WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*vq_ranks.CASES, *(f"{name} sharded" for name in vq_ranks.SHARDED)])
def test_ranks_agree_to_the_bit_and_with_one_process_to_rounding(states, name) -> None:
    first, *others = (state[name] for state in states)
    for key, value in vq_ranks.train(name.removesuffix(" sharded"), None).items():
        assert all(torch.equal(first[key], other[key]) for other in others), key
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-9, msg=key)
    if "vq.initialised" in first:
        assert first["vq.initialised"]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["all", "parts"])
def test_methods_beside_forward_see_whole_parameters(states, sharded) -> None:
    for key, value in vq_ranks.vqvae().items():
        for state in states:
            torch.testing.assert_close(state[f"vqvae {sharded}"][key], value, msg=key)


def test_a_rank_without_vectors_is_refused_where_it_is_alone() -> None:
    with pytest.raises(ValueError, match="want at least one vector"):
        vq_ranks.CASES["ema"]()(torch.zeros(0, 6, 5))
