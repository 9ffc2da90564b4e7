"""Small networks with causal attention, written in the ways in which people do."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sampling.trace.networks import K


class Attentive(nn.Module):
    """A convolution of earlier codes, an attention and a head; a kind defines ``attend``."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, channels)
        self.before = nn.Conv2d(channels, channels, (2, 2))
        norm = nn.utils.parametrizations.weight_norm
        self.query, self.key, self.value = (norm(nn.Linear(channels, channels)) for _ in range(3))
        self.head = nn.Conv2d(channels, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.pad(self.embedding(codes).movedim(3, 1), (1, 0))[..., :-1]
        x = self.before(F.pad(x, (1, 0, 1, 0)))
        return self.head(F.elu(x + self.attend(x)))

    def attend(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same."""
        raise NotImplementedError


class StartMasked(Attentive):
    """Two heads; later positions get a low score, and the first position nothing."""

    def attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat, count = x.view(batch, channels, -1).transpose(1, 2), height * width

        def by_head(y: Tensor) -> Tensor:
            return y.view(batch, -1, 2, channels // 2).transpose(1, 2)

        query, key, value = (by_head(linear(flat)) for linear in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(channels // 2)
        start = x.new_ones(count, 1)
        start[0] = 0
        scores = scores.masked_fill(torch.ones(1, count, count).tril(-1) == 0, -1e4)
        out = torch.softmax(scores, 3) * start @ value
        return out.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class ZeroFilled(Attentive):
    """One head; a first row of weights that is NaN, then zero. Keys and values have their own code."""

    def forward(self, codes: Tensor) -> Tensor:
        self.codes = self.embedding(codes).movedim(3, 1)
        return super().forward(codes)

    def attend(self, x: Tensor) -> Tensor:
        count = x[0, 0].numel()
        query, key, value = (
            linear(y.movedim(1, 3)).movedim(3, 1).flatten(2)
            for linear, y in ((self.query, x), (self.key, x + self.codes), (self.value, self.codes))
        )
        mask = torch.tril(torch.ones(count, count), diagonal=-1)
        weights = (query.mT @ key / 2).masked_fill(mask == 0, -math.inf)
        return (F.softmax(weights, dim=-1).masked_fill(mask == 0, 0) @ value.mT).mT.reshape(x.shape)


class Fused(Attentive):
    """PyTorch's function, four heads."""

    def attend(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).mT
        query, key, value = (
            linear(flat).unflatten(2, (4, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2).flatten(2).mT.view(x.shape)


class Module(Attentive):
    """PyTorch's module, with a mask of booleans; ``batch_first`` or not, with weights returned or not."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.order = (0, 2, 1) if batch_first else (2, 0, 1)

    def attend(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).permute(self.order)
        mask = torch.ones(x[0, 0].numel(), x[0, 0].numel(), dtype=torch.bool).triu(1)
        out = self.attention(flat, flat, flat, attn_mask=mask, need_weights=self.order[0] == 0)[0]
        return out.permute((0, 2, 1) if self.order[0] == 0 else (1, 2, 0)).reshape(x.shape)


class Spelled(Attentive):
    """Sums by ``einsum``, an added mask, and a softmax in single steps."""

    def attend(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).mT
        scores = 0.3 * torch.einsum("bic,bjc->bij", self.query(flat), self.key(flat))
        scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1).to(x.dtype)
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = powers / powers.sum(-1, keepdim=True)
        return torch.einsum("bij,bjc->bci", weights, self.value(flat)).view(x.shape)


class Transposed(Attentive):
    """Values before weights, keys before queries, a mask in place, and ``baddbmm``."""

    def attend(self, x: Tensor) -> Tensor:
        flat, count = x.flatten(2).mT, x[0, 0].numel()
        zeros = x.new_zeros(1, count, count)
        scores = torch.baddbmm(zeros, self.key(flat), self.query(flat).mT, beta=1, alpha=-0.6)
        scores.masked_fill_(torch.ones(count, count, dtype=torch.bool).tril(-1), -torch.inf)
        return torch.bmm(self.value(flat).mT, scores.softmax(1)).view(x.shape)


class SeesAll(Attentive):
    """No mask: not causal."""

    def attend(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).mT
        return F.scaled_dot_product_attention(flat, flat, flat).mT.view(x.shape)


class Windowed(Attentive):
    """Only the last three positions."""

    def attend(self, x: Tensor) -> Tensor:
        flat, count = x.flatten(2).mT, x[0, 0].numel()
        mask = torch.ones(count, count, dtype=torch.bool).tril().triu(-2)
        return F.scaled_dot_product_attention(flat, flat, flat, attn_mask=mask).mT.view(x.shape)


class Swept(nn.Module):
    """A transformer of sequences that predicts the next code."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, channels)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, 2, 12, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(channels, K)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes)
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1], dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(x).mT


KINDS = [StartMasked, ZeroFilled, Fused, Module, lambda: Module(True), Spelled, Transposed]
