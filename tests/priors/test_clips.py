"""The prior of clips: its draws against the whole network at each position, and what it can learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.pipeline import load_model, save_model
from vqfast.priors import ClipPrior
from vqfast.priors.clips import seed_of_frame
from vqfast.sampling.draw import gumbel

K, SHAPE = 7, (4, 3, 5)
NUM_ACTIONS = 3


def make(**options: Any) -> ClipPrior:
    """A prior whose weights are far from those that it starts with."""
    torch.manual_seed(1)
    sizes = {"channels": 4, "num_layers": 2, "first_kernel_size": 3, "head_channels": 4}
    sizes |= {"context_channels": 6, "context_blocks": 2, "num_actions": NUM_ACTIONS}
    prior = ClipPrior(K, **{**sizes, **options}).double().eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


def clips(num: int, shape: tuple[int, ...] = SHAPE, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random codes, and random actions, some of which aren't known."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(K, (num, *shape), generator=generator)
    return codes, torch.randint(-1, NUM_ACTIONS, (num, shape[0]), generator=generator)


@torch.no_grad()
def naive(prior: ClipPrior, known: Tensor, seed: int, temperature: float = 1.0, **given: Any) -> Tensor:
    """The whole network over the clip at each position; -1 in ``known`` where to draw."""
    codes = known.clamp(min=0)
    num, frames, height, width = known.shape
    for t in range(frames):
        noise = gumbel(seed_of_frame(seed, t), torch.arange(num), torch.arange(height * width), K)
        for position in range(height * width):
            y, x = divmod(position, width)
            logits = prior(codes, **given)[:, :, t, y, x]
            drawn = (logits + temperature * noise[:, position]).argmax(1)
            codes[:, t, y, x] = torch.where(known[:, t, y, x] < 0, drawn, known[:, t, y, x])
    return codes


@torch.no_grad()
@pytest.mark.parametrize("context_frames", [1, 2, 3])
def test_logits_depend_on_earlier_codes_and_on_earlier_actions(context_frames: int) -> None:
    prior = make(context_frames=context_frames)
    codes, actions = clips(1)
    logits = prior(codes, actions=actions).flatten(2)
    reach = SHAPE[1] * SHAPE[2] * (1 + 2 * (context_frames - 1))
    for position in range(codes.numel()):
        other = codes.clone()
        other.view(-1)[position] = (other.view(-1)[position] + 1) % K
        changed = (prior(other, actions=actions).flatten(2) != logits).any(1)[0]
        assert not changed[: position + 1].any()
        frame = position // (SHAPE[1] * SHAPE[2])
        assert changed.view(SHAPE)[frame + 1 : frame + 2].numel() == 0 or changed.view(SHAPE)[frame + 1].any()
        assert not changed[(frame + 1) * SHAPE[1] * SHAPE[2] + reach :].any()
    for frame in range(SHAPE[0]):
        other = actions.clone()
        other[0, frame] = (other[0, frame] + 2) % (NUM_ACTIONS + 1) - 1
        changed = (prior(codes, actions=other) != logits.unflatten(2, SHAPE)).any(1)[0]
        assert not changed[:frame].any() and changed[frame].any()


@pytest.mark.parametrize(
    ("options", "draw"),
    [
        ({"context_frames": 3}, {}),
        ({"num_classes": 2}, {"temperature": 0.5}),
        ({"num_actions": None, "context_blocks": 0}, {"temperature": 0.0}),
    ],
)
def test_every_executor_draws_what_the_whole_network_draws(
    options: dict[str, Any], draw: dict[str, float]
) -> None:
    prior = make(**options)
    codes, actions = clips(3)
    known = codes.clone()
    known[:, 1:] = -1
    known[1, 2, 1, 2:] = 3
    given: dict[str, Any] = {} if prior.num_actions is None else {"actions": actions}
    given |= {"labels": torch.tensor([0, 1, 1])} if prior.num_classes else {}
    expected = naive(prior, known, 5, **draw, **given)
    assert torch.equal(expected[:, :1], codes[:, :1]) and (expected[1, 2, 1, 2:] == 3).all()
    for method in registry.TABLE["sampler"]:
        if registry.refusal("sampler", method, next(prior.parameters())) is None:
            drawn = prior.sample(3, SHAPE, known=known, seed=5, method=method, batch_size=2, **draw, **given)
            assert torch.equal(drawn, expected)
    first = {name: value[2:] for name, value in given.items()}
    again = prior.sample(1, SHAPE, known=known[2:, :3], seed=5, numbers=torch.tensor([2]), **draw, **first)
    assert torch.equal(again, expected[2:])


def test_a_frame_costs_one_frame_whatever_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make()
    seen: list[tuple[int, ...]] = []
    inner = prior.network.forward

    def spy(before: Tensor, *args: Any) -> Any:
        seen.append(tuple(before.shape))
        maps, memory = inner(before, *args)
        assert all(kept.shape[1] == 1 for kept in memory)
        return maps, memory

    monkeypatch.setattr(prior.network, "forward", spy)
    ticks: list[int] = []
    prior.sample(2, (9, 3, 5), actions=torch.zeros(2, 9, dtype=torch.int64), progress=ticks.append)
    assert seen == [(2, 1, 3, 5)] * 9 and sum(ticks) == 2 * 9 * 15


@torch.no_grad()
def test_bits_are_the_sum_over_positions() -> None:
    prior = make(num_classes=2)
    codes, actions = clips(2)
    labels = torch.tensor([1, 0])
    p = prior(codes, labels, actions=actions).softmax(1)
    bits = -p.gather(1, codes[:, None])[:, 0].log2()
    told = prior.bits_per_frame(codes, labels, actions=actions)
    torch.testing.assert_close(told, bits.mean((2, 3)))
    torch.testing.assert_close(prior.bits_per_code(codes, labels, actions=actions), bits.mean((1, 2, 3)))
    ended = codes.clone()
    ended[0, 2:] = -1
    shorter = prior.bits_per_code(ended, labels, actions=actions)
    torch.testing.assert_close(shorter[0], told[0, :2].mean())
    assert math.isnan(prior.bits_per_frame(ended, labels, actions=actions)[0, 3])


def test_moving_cells_whose_next_frame_the_action_tells() -> None:
    """A cell of code 1 on code 0 that the action moves: with it next to no bits, without it about one."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 16, "num_layers": 2, "head_channels": 32, "first_kernel_size": 3}
    prior = ClipPrior(2, num_actions=2, context_channels=16, context_blocks=2, **sizes)

    def batch(num: int) -> tuple[Tensor, Tensor]:
        actions = torch.randint(2, (num, 4))
        steps = (2 * actions - 1).index_fill(1, torch.tensor([0]), 0)
        places = torch.randint(3, 5, (num, 1)) + steps.cumsum(1)
        rows = torch.nn.functional.one_hot(places, 8).unsqueeze(2)
        return torch.cat([torch.zeros_like(rows), rows], 2), actions

    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(160):
        codes, actions = batch(16)
        loss = prior.bits_per_frame(codes, actions=actions)[:, 1:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.eval()
    codes, actions = batch(64)
    with torch.no_grad():
        right = 16 * prior.bits_per_frame(codes, actions=actions)[:, 1:].mean()
        wrong = 16 * prior.bits_per_frame(codes, actions=1 - actions)[:, 1:].mean()
    assert right < 0.2 and wrong > 3
    drawn = prior.sample(64, (4, 2, 8), actions=actions, known=codes[:, :1], temperature=0.0)
    assert (drawn == codes).flatten(1).all(1).float().mean() > 0.9


@torch.no_grad()
def test_codes_with_the_same_code_vector_start_alike() -> None:
    prior = make()
    codebook = torch.randn(K, 3, dtype=torch.float64)
    codebook[4] = codebook[2]
    prior.start_from(codebook)
    torch.nn.init.zeros_(prior.prior.head[-1].bias)
    codes, actions = clips(2)
    logits = prior(codes, actions=actions)
    torch.testing.assert_close(logits[:, 4], logits[:, 2])
    swapped = torch.where(codes == 4, 2, codes)
    torch.testing.assert_close(prior(swapped, actions=actions), logits)
    with pytest.raises(ValueError, match=r"codebook has shape \(3, 3\); want \(7, D\)"):
        prior.start_from(codebook[:3])


def test_a_prior_comes_back_from_its_files(tmp_path: Path) -> None:
    prior = make(num_classes=2)
    save_model(tmp_path, "prior", prior.float())
    again = load_model(tmp_path, "prior")
    assert isinstance(again, ClipPrior) and again.config == prior.config
    codes, actions = clips(2)
    assert torch.equal(again(codes, 1, actions=actions), prior(codes, 1, actions=actions))


def test_weights_that_are_not_finite_draw_nothing() -> None:
    prior = make()
    with torch.no_grad():
        prior.network.blocks[0].conv.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="are NaN"):
        prior.sample(1, SHAPE, actions=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_actions is 0", {"num_actions": 0}),
        (TypeError, "context_blocks is 1.0", {"context_blocks": 1.0}),
        (ValueError, "context_frames is 0", {"context_frames": 0}),
        (ValueError, "kernel_size is 2", {"kernel_size": 2}),
    ],
)
def test_wrong_sizes(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        ClipPrior(K, **options)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "actions is None", {"actions": None}),
        (ValueError, r"actions has values .*want -1..2", {"actions": torch.full((2, 4), 3)}),
        (ValueError, r"actions has shape \(2, 3\); want \(2, 4\)", {"actions": torch.zeros(2, 3).long()}),
        (TypeError, "actions has dtype", {"actions": torch.zeros(2, 4)}),
        (ValueError, "labels is given", {"labels": 1}),
    ],
)
def test_wrong_calls(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    prior = make()
    codes, actions = clips(2)
    given: dict[str, Any] = {"actions": actions, **change}
    calls: list[Callable[[], object]] = [
        lambda: prior(codes, **given),
        lambda: prior.sample(2, SHAPE, **given),
        lambda: prior.bits_per_code(codes, **given),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_wrong_clips() -> None:
    prior = make()
    codes, actions = clips(2)
    for wrong, error in ((codes[0], ValueError), (codes + 7, ValueError), (codes.float(), TypeError)):
        with pytest.raises(error, match="indices"):
            prior(wrong, actions=actions)
        with pytest.raises(error, match="known"):
            prior.sample(2, SHAPE, actions=actions, known=wrong)
    options: dict[str, Any]
    for options, message in (
        ({"shape": (3, 5)}, r"shape is \(3, 5\); want \(T, H, W\)"),
        ({"known": torch.zeros(2, 5, 3, 5).long()}, r"known has shape .*want \(2, 1..4, 3, 5\)"),
        ({"numbers": torch.zeros(3).long()}, "numbers has shape"),
        ({"temperature": -1}, "temperature"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            prior.sample(2, options.pop("shape", SHAPE), actions=actions, **options)
    with pytest.raises(ValueError, match="actions is given"):
        make(num_actions=None)(codes, actions=actions)
