import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from tests.acceleration.compare import curve, nearest, same, searches
from vqfast.acceleration import search
from vqfast.acceleration.recipe import Average, averaged
from vqfast.functional import quantize
from vqfast.nn import ranks

K, D = 32, 8


class Base(nn.Module):
    """The search as it circulates."""

    def __init__(self, num_embeddings=K, embedding_dim=D, commitment_cost=0.25):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.commitment_cost = commitment_cost

    def search(self, flat: Tensor) -> Tensor:
        codes = self.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
        return distances.argmin(1)


class VectorQuantizer(Base):
    """``(loss, quantized, perplexity, encodings)``."""

    def forward(self, inputs):
        x = inputs.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D)).unsqueeze(1)
        encodings = x.new_zeros(len(indices), K).scatter_(1, indices, 1)
        quantized = (encodings @ self.embedding.weight).view_as(x)
        loss = F.mse_loss(quantized, x.detach())
        loss = loss + self.commitment_cost * F.mse_loss(quantized.detach(), x)
        quantized = x + (quantized - x).detach()
        used = encodings.mean(0)
        perplexity = torch.exp(-torch.sum(used * torch.log(used + 1e-10)))
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class ChannelsLast(Base):
    """``(quantized, loss)`` of any number of dimensions, the weight at the codebook's term."""

    def forward(self, z):
        z_q = self.embedding(self.search(z.reshape(-1, D))).view_as(z)
        loss = self.commitment_cost * F.mse_loss(z_q, z.detach()) + F.mse_loss(z_q.detach(), z)
        return z + (z_q - z).detach(), loss


class Nested(Base):
    """``(z_q, loss, (perplexity, encodings, indices))``, as VQGAN has it."""

    def forward(self, z, temp=None):
        x = z.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D))
        z_q = self.embedding(indices).view_as(x)
        loss = ((z_q.detach() - x) ** 2).mean() + self.commitment_cost * ((z_q - x.detach()) ** 2).mean()
        z_q = (x + (z_q - x).detach()).permute(0, 3, 1, 2).contiguous()
        return z_q, loss, (None, None, indices)


class Output(NamedTuple):
    quantized: Tensor
    losses: dict[str, Tensor]
    codes: list[Tensor]


class Named(Base):
    """A named tuple, a dictionary and a list; audio."""

    def forward(self, z):
        x = z.transpose(1, 2)
        indices = self.search(x.reshape(-1, D)).view(x.shape[:-1])
        z_q = self.embedding(indices)
        losses = {"codebook": F.mse_loss(z_q, x.detach()), "commitment": F.mse_loss(x, z_q.detach())}
        return Output((x + (z_q - x).detach()).transpose(1, 2).contiguous(), losses, [indices])


class VQEmbedding(Base):
    """``VQEmbedding``: codes by ``forward``, vectors by ``straight_through``."""

    def forward(self, z):
        x = z.permute(0, 2, 3, 1)
        return self.search(x.reshape(-1, D)).view(x.shape[:-1])

    def straight_through(self, z):
        x = z.permute(0, 2, 3, 1).contiguous()
        codes = self.embedding(self(z))
        passed = x + (codes - x).detach()
        return passed.permute(0, 3, 1, 2).contiguous(), codes.permute(0, 3, 1, 2)


class VectorQuantizerEMA(Base):
    """``VectorQuantizerEMA``; its copies keep the counts smoothed or as they are."""

    keeps_smoothed = True

    def __init__(self, decay=0.9, epsilon=1e-5):
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("cluster_size", torch.zeros(K))
        self.ema_w = nn.Parameter(torch.randn(K, D))

    def forward(self, inputs):
        x = inputs.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D))
        encodings = F.one_hot(indices, K).float()
        quantized = self.embedding(indices).view_as(x)
        if self.training:
            counts = self.cluster_size * self.decay + (1 - self.decay) * encodings.sum(0)
            smoothed = (counts + self.epsilon) / (counts.sum() + K * self.epsilon) * counts.sum()
            sums = self.ema_w * self.decay + (1 - self.decay) * encodings.T @ x.detach().view(-1, D)
            self.cluster_size = smoothed if self.keeps_smoothed else counts
            self.ema_w = nn.Parameter(sums.detach())
            self.embedding.weight = nn.Parameter((sums / smoothed.unsqueeze(1)).detach())
        loss = self.commitment_cost * F.mse_loss(quantized.detach(), x)
        quantized = x + (quantized - x).detach()
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), indices.view(len(x), -1)


class RawCountsEMA(VectorQuantizerEMA):
    keeps_smoothed = False


class Quantize(nn.Module):
    """Codes ``(D, K)`` in a buffer beside their moving averages, channels last, as VQ-VAE-2 has it."""

    def __init__(self, dim=D, n_embed=K, decay=0.99, eps=1e-5):
        super().__init__()
        self.dim, self.n_embed, self.decay, self.eps = dim, n_embed, decay, eps
        embed = torch.randn(dim, n_embed)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(n_embed))
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, input):
        flat = input.reshape(-1, self.dim)
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.embed + self.embed.square().sum(0)
        indices = (-distances).max(1)[1]
        one_hot = F.one_hot(indices, self.n_embed).type(flat.dtype)
        indices = indices.view(*input.shape[:-1])
        quantized = self.embed_code(indices)
        if self.training:
            self.cluster_size.data.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_(flat.T @ one_hot, alpha=1 - self.decay)
            seen = self.cluster_size.sum()
            smoothed = (self.cluster_size + self.eps) / (seen + self.n_embed * self.eps) * seen
            self.embed.data.copy_(self.embed_avg / smoothed.unsqueeze(0))
        loss = (quantized.detach() - input).square().mean()
        return input + (quantized - input).detach(), loss, indices

    def embed_code(self, indices):
        return F.embedding(indices, self.embed.T)


class EmbeddingEMA(nn.Module):
    def __init__(self, decay=0.99, eps=1e-5):
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        weight = torch.randn(K, D)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(K), requires_grad=False)
        self.embed_avg = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, indices):
        return F.embedding(indices, self.weight)


class EMAVectorQuantizer(Base):
    """Averages in the child that has the codes, as VQGAN has it."""

    def __init__(self):
        super().__init__()
        self.embedding = EmbeddingEMA()

    def forward(self, z):
        x = z.permute(0, 2, 3, 1)
        flat, table = x.reshape(-1, D), self.embedding
        indices = self.search(flat)
        z_q = table(indices).view(x.shape)
        one_hot = F.one_hot(indices, K).type(z.dtype)
        used = one_hot.mean(0)
        if self.training and table.update:
            table.cluster_size.data.mul_(table.decay).add_(one_hot.sum(0), alpha=1 - table.decay)
            table.embed_avg.data.mul_(table.decay).add_(one_hot.T @ flat, alpha=1 - table.decay)
            seen = table.cluster_size.sum()
            smoothed = (table.cluster_size + table.eps) / (seen + K * table.eps) * seen
            table.weight.data.copy_(table.embed_avg / smoothed.unsqueeze(1))
        loss = self.commitment_cost * F.mse_loss(z_q.detach(), x)
        perplexity = torch.exp(-torch.sum(used * torch.log(used + 1e-10)))
        z_q = (x + (z_q - x).detach()).permute(0, 3, 1, 2)
        return z_q, loss, (perplexity, one_hot, indices)


class OwnCodebook(ChannelsLast):
    """A parameter of its own."""

    turned = False

    def __init__(self):
        nn.Module.__init__(self)
        self.commitment_cost = 0.25
        self.codebook = nn.Parameter(torch.randn(D, K) if self.turned else torch.randn(K, D))

    def embedding(self, indices):
        return F.embedding(indices, self.codebook.T if self.turned else self.codebook)

    def search(self, flat):
        codes = self.codebook.T if self.turned else self.codebook
        return torch.cdist(flat, codes).argmin(1)


class TurnedCodebook(OwnCodebook):
    turned = True


def images() -> list[Tensor]:
    return [torch.randn(2, D, 4, 5), torch.randn(3, D, 4, 4)]


@pytest.mark.parametrize("cls", [VectorQuantizer, Nested, VQEmbedding, VectorQuantizerEMA, RawCountsEMA])
def test_conventions_of_images(cls):
    fast = same(cls(), images())
    assert vqfast.accelerate(fast).replaced == [("", cls.__name__, K, D, "")]


def test_channels_last_of_any_number_of_dimensions():
    same(ChannelsLast(), [torch.randn(2, 4, 5, D), torch.randn(2, 9, D), torch.randn(19, D)])


@pytest.mark.parametrize("cls", [Quantize, OwnCodebook, TurnedCodebook])
def test_codes_in_a_tensor_of_its_own(cls):
    fast = same(cls(), [torch.randn(2, 4, 5, D), torch.randn(3, 9, D), torch.randn(2, 4, 5, D)])
    assert vqfast.accelerate(fast).replaced == [("", cls.__name__, K, D, "")]


def test_averages_beside_the_codes():
    slow = EMAVectorQuantizer()
    fast = same(slow, images())
    assert vqfast.accelerate(fast).replaced == [("", "EMAVectorQuantizer", K, D, "")]
    fast.train().embedding.update = False
    assert searches(fast, images()[0])[1] == 0


def test_averages_in_float16_count_more_vectors_than_it_can():
    counts = torch.full((4,), 30_000.0)
    out = quantize(torch.ones(1, 2), torch.ones(4, 2), return_statistics=True)
    out = out._replace(counts=counts.long(), sums=counts.unsqueeze(1).expand(4, 2))
    average = Average("counts", "sums", 0.9, 1e-5, keeps_smoothed=False)
    codes, *_ = averaged(average, counts.half(), counts.half().unsqueeze(1).expand(4, 2), out)
    torch.testing.assert_close(codes, torch.ones(4, 2))


def test_averages_compile():
    torch.compiler.reset()
    slow = Quantize()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = torch.randn(2, 20, D)
        torch.testing.assert_close(compiled(x), slow(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-4, atol=1e-5)


def test_as_many_codes_as_channels():
    same(Quantize(8, 8), [torch.randn(2, 4, 5, 8)])


def test_averages_with_several_ranks_go_to_the_original(monkeypatch):
    early, late = Quantize(), Quantize()
    vqfast.accelerate(early)
    monkeypatch.setattr(ranks, "several", lambda: True)
    (entry,) = vqfast.accelerate(late).replaced
    assert entry.note.endswith("keeps its own code: with several ranks its averages may be joined")
    for fast in (early, late):
        for training in (True, False):
            assert searches(fast.train(training), torch.randn(2, 4, 5, D))[1] == (not training)


def test_audio_and_nested_returns():
    same(Named(), [torch.randn(2, D, 30)])


def test_straight_through():
    same(VQEmbedding(), images(), lambda module, z: module.straight_through(z))


def test_codes_are_those_of_float64():
    slow = VQEmbedding()
    slow.embedding.weight.data += 100
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(4, D, 32, 32) + 100
    truth = nearest(x.movedim(1, -1), slow.embedding.weight.detach())
    assert torch.equal(fast(x), truth)
    assert (slow(x) != truth).sum() > 10  # theirs is the side that errs


@pytest.mark.parametrize("cls", [VectorQuantizer, VectorQuantizerEMA])
def test_ten_steps_give_the_same_curve(cls):
    slow = cls()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    ours, theirs = (
        curve(module, lambda out, z: (out[1] - z).square().mean() + out[0], (4, D, 5, 5))
        for module in (fast, slow)
    )
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_changed_setting_or_another_call_goes_to_the_original():
    slow = Nested()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = images()[0]
    assert searches(fast, x)[1] == 1
    assert searches(lambda: fast(x, temp=None))[1] == searches(lambda: fast(z=x))[1] == 0
    fast.commitment_cost = slow.commitment_cost = 3.0
    (_, loss, _), searched = searches(fast, x)
    assert searched == 0
    torch.testing.assert_close(loss, slow(x)[1])


def test_without_weights():
    with torch.device("meta"):
        module = VectorQuantizer()
    (entry,) = vqfast.accelerate(module).left
    assert entry.note == "its weights are on the meta device"


def test_little_work_goes_to_the_original(monkeypatch):
    monkeypatch.setattr(search, "LITTLE", 10 * K * D)
    for cls, learning, least in ((ChannelsLast, False, 10), (ChannelsLast, True, 80), (Quantize, False, 40)):
        fast = cls()
        vqfast.accelerate(fast)
        with torch.set_grad_enabled(learning):
            counts = [searches(fast, torch.randn(1, n, D))[1] for n in (least - 1, least)]
        assert counts == [0, 1]


def test_one_vector_is_searched():
    same(VQEmbedding(), [torch.randn(1, D, 1, 1)])


class CosineQuantizer(Base):
    def search(self, flat):
        return (F.normalize(flat) @ F.normalize(self.embedding.weight).T).argmax(1)

    forward = ChannelsLast.forward


class SummedQuantizer(Base):
    def forward(self, z):
        z_q = self.embedding(self.search(z.reshape(-1, D))).view_as(z)
        return z + (z_q - z).detach(), F.mse_loss(z_q, z, reduction="sum")


class NoisyQuantizer(ChannelsLast):
    def forward(self, z):
        z_q, loss = super().forward(z)
        return z_q + torch.rand_like(z_q) if self.training else z_q, loss


class RestartingQuantizer(ChannelsLast):
    def forward(self, z):
        returned = super().forward(z)
        if self.training:
            self.embedding.weight.data[0] = z.detach().reshape(-1, D)[0]
        return returned


class CountingQuantizer(ChannelsLast):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        return super().forward(z)


class QuantizerOfTwo(Base):
    def forward(self, z, mask):
        return z


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (CosineQuantizer, "it returns what no quantiser by distance does"),
        (SummedQuantizer, "its results differ"),
        (CountingQuantizer, "it changes its attributes"),
        (QuantizerOfTwo, "it takes no single tensor of vectors"),
    ],
)
def test_others_are_left_alone_with_a_reason(cls, reason):
    module = cls()
    state = copy.deepcopy(module.state_dict())
    report = vqfast.accelerate(module)
    assert not report.replaced and type(module) is cls
    assert reason in report.left[0].note
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (NoisyQuantizer, "returns what no quantiser"),
        (RestartingQuantizer, "moves embedding.weight in a way of its own"),
    ],
)
def test_a_mode_that_differs_keeps_its_own_code(cls, reason):
    fast = same(cls(), [torch.randn(2, 4, 5, D)], modes=(False,))
    (entry,) = vqfast.accelerate(fast).replaced
    assert entry.note.startswith("forward in training keeps its own code") and reason in entry.note


def test_modules_that_are_no_quantisers_arent_mentioned():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(K, D)

        def forward(self, x):
            return x + self.table(torch.arange(x.shape[-2]))

    class OwnPositions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Parameter(torch.randn(K, D))

        def forward(self, x):
            return x + self.embed[: x.shape[-2]]

    class Uncopied(OwnPositions):
        def __deepcopy__(self, memo):
            raise RuntimeError

    model = nn.Sequential(nn.Linear(4, D), Positions(), OwnPositions(), Uncopied(), nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="no known quantiser"):
        vqfast.accelerate(model)


def test_probing_leaves_no_trace():
    module = VectorQuantizerEMA().train()
    state, noise = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    vqfast.accelerate(module)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)
    assert torch.equal(torch.random.get_rng_state(), noise)
    assert module.training and all(weight.grad is None for weight in module.parameters())
