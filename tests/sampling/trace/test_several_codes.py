"""Networks whose positions have several codes, and values that see all of a row that is drawn already."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vqfast import program_of
from vqfast.sampling import Phase

K, S = 5, 3


class SubPixelConv(nn.Conv2d):
    """Channel ``c`` of the own position sees the groups of channels before its own; mask B its own too."""

    def __init__(self, inputs: int, outputs: int, size: int, mask_type: str, by_turns: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones_like(self.weight)
        middle = size // 2
        mask[:, :, middle + 1 :] = 0
        mask[:, :, middle, middle + 1 :] = 0
        group = [torch.arange(n) % S if by_turns else torch.arange(n) * S // n for n in (outputs, inputs)]
        seen = group[0][:, None] > group[1] if mask_type == "A" else group[0][:, None] >= group[1]
        mask[:, :, middle, middle] = seen.float()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Colours(nn.Module):
    """Colours in channels, scaled: masked convolutions, a gate, a residual, labels."""

    def __init__(self, by_turns: bool = True, activation: str = "gate", num_classes: int = 0) -> None:
        super().__init__()
        self.by_turns, self.activation = by_turns, activation
        self.first = SubPixelConv(S, 6, 3, "A", by_turns)
        self.second = SubPixelConv(6, 12, 3, "B", by_turns)
        self.head = SubPixelConv(6, S * K, 1, "B", by_turns)
        self.labels = nn.Embedding(num_classes, 6) if num_classes else None

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.first(codes.movedim(-1, 1).to(self.first.weight.dtype) / 2 - 1).tanh()
        if self.labels is not None:
            x = x + self.labels(labels)[:, :, None, None]
        parts = self.second(x).unflatten(1, (S, -1) if not self.by_turns else (-1, S))
        a, b = parts.chunk(2, dim=2 if not self.by_turns else 1)
        a, b = a.flatten(1, 2), b.flatten(1, 2)
        x = x + (a.tanh() * b.sigmoid() if self.activation == "gate" else F.elu(a) + b)
        logits = self.head(x)
        if self.by_turns:
            return logits.unflatten(1, (K, S)).movedim(2, -1)
        return logits.unflatten(1, (S, K)).movedim(1, -1)


class ResidualCodes(nn.Module):
    """Codes of a residual quantiser: the sum of their embeddings, and a head that sees the earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, 6)
        self.above = nn.Conv2d(6, 8, (2, 3))
        self.left = nn.Conv2d(6, 8, (1, 2))
        self.own = nn.ModuleList(nn.Embedding(K, 8) for _ in range(S - 1))
        self.heads = nn.ModuleList(nn.Linear(8, K) for _ in range(S))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).sum(3).permute(0, 3, 1, 2)
        h = self.above(F.pad(x, (1, 1, 2, 0))[:, :, :-1]) + self.left(F.pad(x, (2, 0, 0, 0))[..., :-1])
        h, logits = h.permute(0, 2, 3, 1), []
        for s, head in enumerate(self.heads):
            logits.append(head(h.relu()))
            if s + 1 < S:
                h = h + self.own[s](codes[..., s])
        return torch.stack(logits, -1).movedim(-2, 1)


class OverTime(nn.Module):
    """Codes of a codec at each time step, one-hot and all at once; it predicts the next time step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(S * K, 8, 2)
        self.head = nn.Conv1d(8, S * K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.one_hot(codes, K).flatten(2).mT.to(self.conv.weight.dtype)
        logits = self.head(self.conv(F.pad(x, (1, 0))).relu())
        return logits.unflatten(1, (S, K)).movedim(1, -1)


class OwnRow(nn.Module):
    """A vertical stack whose values see all of their own row, to be read from the row below; in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, 6)
        self.rows = nn.ModuleList(nn.Conv2d(6, 12, (2, 3), padding=(2, 1)) for _ in range(2))
        self.own = nn.Conv2d(6, 12, 1)
        self.down = nn.Conv2d(12, 6, 1)
        self.labels = nn.Embedding(3, 12)
        self.head = nn.Conv2d(6, K, 1)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        v, h = self.embedding(codes).permute(0, 3, 1, 2), 0
        for conv in self.rows:
            seen = conv(v)
            own, above = seen[:, :, 1:-2], seen[:, :, :-3]  # the same memory
            own += self.own(v)
            own += self.labels(labels)[:, :, None, None]
            a, b = own.chunk(2, dim=1)
            v, h = a.tanh() * b.sigmoid(), h + self.down(above)
        return self.head(h)


def double(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.double().eval().parameters():
        with torch.no_grad():
            parameter.normal_(std=0.7)
    return network


def draws_what_its_loop_draws(network: nn.Module, grid: tuple[int, ...], **options: Any) -> Any:
    several = options.get("num_quantizers", 0)
    prior = program_of(network, K, grid, **options)
    given_arguments: dict[str, Any] = {"labels": 2} if "num_classes" in options else {}
    axes = (several,) if several else ()
    known = torch.full((4, *grid, *axes), -1)
    if "predicts" in options:
        known[:, 0] = 1
    known[1].view(-1)[7] = 3
    expected = prior.sample(4, grid, known=known, method="reference", **given_arguments)
    for method in ("torch", "native"):
        assert torch.equal(prior.sample(4, grid, known=known, method=method, **given_arguments), expected)
    assert expected.shape == (4, *grid, *axes) and len(expected.unique(dim=0)) > 1
    return prior


@pytest.mark.parametrize(
    ("network", "grid", "options"),
    [
        (Colours(), (4, 3), {}),
        (Colours(by_turns=False), (3, 4), {}),
        (Colours(activation="elu", num_classes=3), (3, 3), {"num_classes": 3}),
        (ResidualCodes(), (3, 4), {}),
        (OverTime(), (9,), {"predicts": "next"}),
    ],
    ids=["colours by turns", "colours in groups", "labels", "residual codes", "over time"],
)
def test_network_of_several_codes_draws_what_its_loop_draws(
    network: nn.Module, grid: tuple[int, ...], options: dict[str, Any]
) -> None:
    draws_what_its_loop_draws(double(network), grid, num_quantizers=S, **options)


def test_channels_are_computed_as_soon_as_their_codes_are_drawn() -> None:
    prior = draws_what_its_loop_draws(double(Colours()), (3, 3), num_quantizers=S)
    program = prior.lower()[0]
    assert program.num_quantizers == S
    assert program.phases()[-S:] == [Phase.POSITION, Phase.CODE, Phase.CODE + 1]


def test_values_that_see_their_own_row_are_computed_with_the_next_row() -> None:
    prior = draws_what_its_loop_draws(double(OwnRow()), (4, 3), num_classes=3)
    assert set(prior.lower()[0].phases()) == {Phase.ROW}


@pytest.mark.parametrize("change", ["own code", "later code", "later position"])
def test_mask_that_leaks_is_refused(change: str) -> None:
    network = double(Colours(by_turns=False))
    place = {"own code": (0, 0, 1, 1), "later code": (0, 2, 1, 1), "later position": (0, 0, 1, 2)}[change]
    network.first.mask[place] = 1
    seen = {
        "own code": "(0, 0, 0) sees the code at (0, 0, 0)",
        "later code": "(0, 0, 0) sees the code at (0, 0, 2)",
    }
    with pytest.raises(ValueError, match="the network isn't causal.*" + re.escape(seen.get(change, "sees"))):
        program_of(network, K, (3, 3), num_quantizers=S)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    by_turns=st.booleans(),
    sizes=st.lists(st.sampled_from([1, 3, 5]), max_size=2),
    activations=st.lists(st.sampled_from(["relu", "elu", "tanh", "gelu", "silu"]), min_size=3, max_size=3),
    residual=st.booleans(),
)
def test_program_is_any_network_of_masked_convolutions(
    by_turns: bool, sizes: list[int], activations: list[str], residual: bool
) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([SubPixelConv(S, 6, 3, "A", by_turns)])
            self.convs.extend(SubPixelConv(6, 6, size, "B", by_turns) for size in sizes)
            self.head = SubPixelConv(6, S * K, 1, "B", by_turns)

        def forward(self, codes: Tensor) -> Tensor:
            x = codes.movedim(-1, 1).to(self.head.weight.dtype)
            for conv, name in zip(self.convs, activations, strict=False):
                y = getattr(F, name)(conv(x))
                x = x + y if residual and x.shape == y.shape else y
            order = (K, S) if by_turns else (S, K)
            return self.head(x).unflatten(1, order).movedim(2 if by_turns else 1, -1)

    draws_what_its_loop_draws(double(Network()), (2, 3), num_quantizers=S)
