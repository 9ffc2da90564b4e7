"""Networks of other people as programs: every executor draws what their own loop draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.sampling.chi_square import p_value
from tests.sampling.trace import networks
from tests.sampling.trace.cases import CASES, given_of, known_of, make_network, own_loop
from tests.sampling.trace.networks import K
from vqfast.priors import PixelCNN, program_of
from vqfast.sampling import parallel


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_traced_network_draws_what_its_own_loop_draws(case: str, executor: str) -> None:
    network, (_, shape, options) = make_network(case), CASES[case]
    prior = program_of(network, K, shape, **options)
    shapes = [shape] if case == "conditioned" else [shape, tuple(n - 2 for n in shape)]
    for shape in shapes:
        expected = own_loop(network, case, 5, shape)
        given = given_of(case, 5) | known_of(case, 5, shape)
        assert torch.equal(prior.sample(5, shape, method=executor, batch_size=3, **given), expected)
        assert torch.equal(prior.sample(5, shape, method="reference", **given), expected)
        assert len(expected.unique(dim=0)) == 5


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    blocks=st.lists(st.sampled_from(networks.BLOCKS), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    several=st.sampled_from([0, 0, 2]),
    shape=st.sampled_from([(3, 4), (1, 5), (4, 1)]),
)
def test_any_stack_of_blocks_is_a_program(
    blocks: list[str], seed: int, several: int, shape: tuple[int, int]
) -> None:
    given: dict[str, Tensor] = {"labels": torch.tensor([0, 1, 2, 1])}
    given["condition"] = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()
    prior = program_of(
        networks.Stack(blocks, seed, several).double().eval(),
        K,
        shape,
        num_classes=3,
        condition=given["condition"][:1],
        num_quantizers=several or None,
    )
    expected = prior.sample(4, shape, method="reference", **given)
    for executor in ("torch", "auto"):
        assert torch.equal(prior.sample(4, shape, method=executor, **given), expected)


def test_traced_network_has_the_steps_of_a_lowered_one() -> None:
    """A network with a PixelCNN's layers has no more steps, products or weights than a PixelCNN."""
    prior = program_of(make_network("in-place-masks"), K, (4, 5), num_classes=3)
    channels = prior.networks[0].embedding.embedding_dim
    like = PixelCNN(
        K, channels, 3, num_classes=3, kernel_size=3, first_kernel_size=3, head_channels=9
    ).double()
    costs, kinds = [], []
    for each in (prior, like):
        program, weights = each.lower()
        read = {name for step in program.steps for name in (*(t.weight for t in step.terms), step.bias)}
        costs.append(
            (len(program.steps), program.phases(), sum(weights[name].numel() for name in read if name))
        )
        kinds.append([(len(step.terms), step.activation, step.residual) for step in program.steps])
    assert costs[0] == costs[1]
    assert kinds[0] == kinds[1]


@torch.no_grad()
def test_traced_network_draws_its_probabilities(executor: str) -> None:
    """The joint counts of the first two codes of a row, against the network's own probabilities."""
    network = networks.Stack(["square", "layer-norm", "gate"], 0).double().eval()
    network.head.weight *= 8
    drawn = program_of(network, K, (2, 3)).sample(4000, (1, 2), method=executor)[:, 0]
    counts = torch.bincount(drawn @ torch.tensor([K, 1]), minlength=K * K)
    first = torch.arange(K).view(K, 1, 1).expand(K, 1, 2)
    logits = network(first)[:, :, 0].log_softmax(1)
    joint = (logits[0, :, 0, None] + logits[:, :, 1]).exp().flatten()
    assert joint.max() > 2 / K**2
    assert p_value(counts.numpy(), joint.numpy()) > 1e-4


class ByColumn(nn.Module):
    """Generates column by column: sees the two columns to the left, and two codes above in its own column."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, 4)
        self.columns = nn.Conv2d(4, 4, (3, 2))
        self.above = nn.Conv2d(4, 4, (2, 1))
        self.head = nn.Conv2d(4, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).permute(0, 3, 1, 2)
        left = self.columns(F.pad(x, (2, 0, 1, 1)))[..., :-1]
        above = self.above(F.pad(x, (0, 0, 2, 0)))[:, :, :-1]
        return self.head((left + above).relu())


@torch.no_grad()
def test_network_of_another_order_is_told_and_samples_transposed(executor: str) -> None:
    torch.manual_seed(0)
    network = ByColumn().double().eval()
    with pytest.raises(
        ValueError, match=r"its output at \(0, 2\) sees the code at \(1, 1\); it generates column by"
    ):
        program_of(network, K, (4, 5))
    prior = program_of(lambda codes: network(codes.mT).mT, K, (5, 4))
    expected = prior.sample(5, (5, 4), method="reference")
    assert torch.equal(prior.sample(5, (5, 4), method=executor), expected)
    assert len(expected.unique(dim=0)) == 5


class Careless(nn.Module):
    """A network with what no program can do: it sees below, attends, has strides, or is random."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(K, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1)
        self.head = nn.Conv2d(4, K, 1)
        self.dropout = nn.Dropout()

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).permute(0, 3, 1, 2)
        if self.kind == "ahead":
            x = self.conv(x)
        x = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        if self.kind == "several":
            flat = x.flatten(2)
            weights = flat.transpose(1, 2) @ flat
            halved = self.strided(x)  # line of stride
            x = weights.softmax(2).mean(2).view(len(x), 1, 4, 5) + x  # line of scores
            x = x + F.interpolate(halved, size=(4, 5))
        x = self.dropout(x)
        logits = self.head(x)
        return logits.softmax(1) if self.kind == "probabilities" else logits


def line(text: str) -> str:
    """``file:line`` of this file."""
    lines = Path(__file__).read_text().splitlines()
    return f"{Path(__file__).name}:{next(n for n, each in enumerate(lines, 1) if each.endswith(text))}"


def test_all_that_is_missing_is_listed_with_its_lines() -> None:
    with pytest.raises(ValueError, match="no sampling program can do this") as caught:
        program_of(Careless("several").eval(), K, (4, 5))
    message = str(caught.value)
    assert f"{line('# line of scores')}: add of attention scores and another value" in message
    assert f"{line('# line of stride')}: a convolution of stride [2, 1], not" in message


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (
            "ahead",
            r"at .*test_networks\.py:\d+ reads a later .*; its output at \(1, 0\) sees the code at \(1, 1\)",
        ),
        ("probabilities", "softmax; return the logits"),
        ("noisy", "dropout in training mode"),
    ],
)
def test_network_that_no_program_samples_is_refused(kind: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        program_of(Careless(kind).train(kind == "noisy"), K, (4, 5))


def test_logits_that_see_their_own_code_are_refused() -> None:
    network = nn.Sequential(nn.Embedding(K, K))
    with pytest.raises(
        ValueError, match=r"the code that they are for; its output at \(0,\) sees the code at \(0,\)"
    ):
        program_of(lambda codes: network(codes).transpose(1, 2), K, (6,))
    prior = program_of(lambda codes: network(codes).transpose(1, 2), K, (6,), predicts="next")
    with pytest.raises(ValueError, match="known lacks first codes"):
        prior.sample(2, (6,))


class SelfMasked(nn.Conv2d):
    """A layer that multiplies its weight with a new mask at each call, in place."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:] = 0
        self.weight.data.mul_(mask)
        return super().forward(F.pad(x, (1, 1, 1, 0)))


def test_network_that_writes_into_its_own_weights_draws_what_its_own_loop_draws(executor: str) -> None:
    torch.manual_seed(0)
    layer, head = SelfMasked(K, 8, (2, 3)), nn.Conv2d(8, K, 1)
    network = nn.Sequential(layer, nn.ReLU(), head).double().eval()
    prior = program_of(lambda codes: network(F.one_hot(codes, K).movedim(3, 1).double()), K, (3, 4))
    expected = prior.sample(4, (3, 4), method="reference")
    assert torch.equal(prior.sample(4, (3, 4), method=executor), expected)


@pytest.mark.parametrize("constant", ["embedding", "kernel", "bias", "matrix"])
def test_constants_that_depend_on_the_condition_are_refused(constant: str) -> None:
    """The program would keep those of the condition that it was traced with."""
    embedding, layer, head = nn.Embedding(K, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, K)

    def logits(codes: Tensor, condition: Tensor) -> Tensor:
        scale = {constant: condition[0].mean()}
        x = F.embedding(codes, embedding.weight * scale.get("embedding", 1))
        x = F.pad(x, (0, 0, 1, 0))[:, :-1] * 1.0
        weight, bias = layer.weight * scale.get("kernel", 1), layer.bias * scale.get("bias", 1)
        x = F.conv1d(x.transpose(1, 2), weight, bias).relu().transpose(1, 2)
        return F.linear(x, head.weight * scale.get("matrix", 1), head.bias).transpose(1, 2)

    with pytest.raises(ValueError, match=r"depends on condition|differs by"):
        program_of(logits, K, (6,), condition=torch.ones(1, 2))


def test_a_network_is_compared_where_its_mask_leaves_codes_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of -1e9 set no scale by which other logits could differ."""
    embedding, head = nn.Embedding(K, 8), nn.Linear(8, K)
    mask = torch.zeros(K)
    mask[0] = -1e9

    def logits(codes: Tensor) -> Tensor:
        x = F.pad(embedding(codes), (0, 0, 1, 0))[:, :-1].relu()
        return (head(x) + mask).transpose(1, 2)

    assert (program_of(logits, K, (6,)).sample(20, (6,)) != 0).all()
    exact = parallel.logits
    monkeypatch.setattr(parallel, "logits", lambda *args: exact(*args) * 1.001)
    with pytest.raises(ValueError, match="the program isn't the network"):
        program_of(logits, K, (6,))
