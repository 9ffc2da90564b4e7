"""Trying networks of other repositories: what comes out of each, and that nothing of them stays imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import foreign_networks, foreign_priors, tables
from benchmarks.foreign_networks import build, of_scaled

MODEL = """
import torchvision.utils  # isn't needed
from torch import nn
class Network(nn.Module):
    def __init__(self, ahead):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (2, 1))
        self.head = nn.Conv2d(4, 8, 1)
        self.ahead = ahead
    def forward(self, x):
        x = self.conv(nn.functional.pad(x, (0, 0, 2, 0)))
        return self.head(x[:, :, self.ahead:][:, :, :4])
"""


@pytest.mark.parametrize(
    ("source", "ahead", "result", "why"),
    [
        (MODEL, 0, "sampled", "80 of 80 codes are equal; steps of the program: 1"),
        (MODEL, 1, "refused: not causal", "the logits depend on the code that they are for; its output at"),
        (MODEL.replace("self.head(x[", "self.head(x.cumsum(3)["), 0, "refused", "model.py:12: cumsum of"),
        ("print 'Python 2'", 0, "fails", "model.py is no Python 3: print"),
        (None, 0, "absent", "it isn't in the folder"),
    ],
)
def test_what_comes_out_of_a_network(
    source: str | None, ahead: int, result: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / "someone+network").mkdir()
        (tmp_path / "someone+network" / "model.py").write_text(source)
    monkeypatch.setitem(
        foreign_networks.TRIALS,
        ("someone/network", "Network"),
        lambda: of_scaled(build("model", "Network", ahead)),
    )
    before = {name: sys.modules.get(name) for name in ("model", "torchvision", "torchvision.utils")}
    row = foreign_priors.tried("someone/network", "Network", tmp_path)
    assert (row["repository"], row["network"], row["result"]) == ("someone/network", "Network", result)
    assert row["why"].startswith(why), row["why"]
    assert {name: sys.modules.get(name) for name in before} == before


def test_a_repository_is_named_on_its_first_line() -> None:
    row = {"repository": "a/b", "network": "x", "result": "sampled", "why": "4 steps"}
    table = tables.networks({"rows": [row, {**row, "network": "y"}]}, "all")
    assert table.splitlines()[2:] == ["| a/b | x | **sampled**; 4 steps |", "|  | y | **sampled**; 4 steps |"]
