"""Traced networks as files: the program alone draws the same codes, and bad programs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sampling.trace.cases import CASES, given_of, make_network
from tests.sampling.trace.networks import K
from tests.sampling.trace.test_several_codes import Colours
from tests.sampling.trace.test_several_codes import K as COLOURS
from vqfast.priors import ProgramPrior, program_of
from vqfast.priors.traced import TracedPrior


def traced(case: str) -> TracedPrior:
    _, shape, options = CASES[case]
    return program_of(make_network(case), K, shape, **options)


@pytest.mark.parametrize("case", CASES)
def test_the_program_alone_is_the_network(case: str, tmp_path: Path) -> None:
    prior, given, shape = traced(case), given_of(case, 4), CASES[case][1]
    if "condition" in given:
        with pytest.raises(ValueError, match="condition, which files don't hold"):
            prior.save_pretrained(tmp_path)
        return
    prior.save_pretrained(tmp_path)
    found = ProgramPrior.from_pretrained(tmp_path)
    codes = torch.randint(K, (4, *shape))
    axes = (4, *shape)
    torch.testing.assert_close(
        found.bits_per_code(codes, **given), prior.bits_per_code(codes, **given), rtol=1e-9, atol=1e-9
    )
    known = codes.where(torch.rand(axes) < 0.3, -1)
    known[..., 0] = codes[..., 0]
    for method in ("auto", "reference"):
        drawn = found.sample(4, shape, known=known, seed=3, method=method, **given)
        assert torch.equal(drawn, prior.sample(4, shape, known=known, seed=3, **given))
    other = tuple(n + 1 for n in shape)
    if prior.any_shape and found.shape is None:
        known = torch.zeros(4, *other, dtype=torch.int64).index_fill(-1, torch.arange(1, other[-1]), -1)
        drawn = found.sample(4, other, known=known, **given)
        assert torch.equal(drawn, prior.sample(4, other, known=known, **given))
    else:
        with pytest.raises(ValueError, match="the only one that this program is for"):
            found.sample(4, other, **given)


def test_weights_can_be_trained(tmp_path: Path) -> None:
    traced("buffers").save_pretrained(tmp_path)
    prior = ProgramPrior.from_pretrained(tmp_path)
    codes = torch.randint(K, (8, *CASES["buffers"][1]))
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    bits = []
    for _ in range(10):
        bits.append(prior.bits_per_code(codes).mean())
        optimizer.zero_grad()
        bits[-1].backward()
        optimizer.step()
    assert bits[-1] < bits[0] - 0.1
    drawn = prior.sample(3, codes.shape[1:])
    assert torch.equal(drawn, prior.sample(3, codes.shape[1:], method="reference"))


def test_several_codes_and_a_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = program_of(Colours().double().eval(), COLOURS, (3, 4), num_quantizers=3)
    pushed: list[Any] = []
    monkeypatch.setattr(ProgramPrior, "push_to_hub", lambda self, *args, **options: pushed.append(self))
    prior.push_to_hub("someone/codes")
    assert torch.equal(pushed[0].sample(2, (3, 4)), prior.sample(2, (3, 4)))


BAD = {
    "no such weight": lambda config: config["weights"].pop(next(iter(config["weights"]))),
    "another shape": lambda config: config["weights"].update({next(iter(config["weights"])): [1, 1, 1]}),
    "wider than its weights": lambda config: config["steps"][0].update(width=config["steps"][0]["width"] * 2),
    "a later step": lambda config: config["steps"][0]["terms"][0].update(source=1),
    "a later row": lambda config: config["steps"][0]["terms"][0].update(
        taps=[[1, 0]] * len(config["steps"][0]["terms"][0]["taps"])
    ),
    "no kind": lambda config: config["steps"][0].pop("kind"),
    "another kind": lambda config: config["steps"][0].update(kind="Linear"),
    "a map that isn't there": lambda config: config["steps"][0]["terms"][0].update(source=-1, taps=[[0, 0]]),
    "no steps": lambda config: config.update(steps=[]),
    "steps of another type": lambda config: config.update(steps=3),
}


@pytest.mark.parametrize("damage", BAD)
def test_damaged_programs_are_refused(damage: str, tmp_path: Path) -> None:
    """An executor reads memory by these sizes."""
    traced("buffers").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    BAD[damage](config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json"):
        ProgramPrior.from_pretrained(tmp_path)
