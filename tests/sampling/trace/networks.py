"""Small causal networks, written in the ways in which people mask, shift, gate, condition and return."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K = 6


class InPlaceMasked(nn.Module):
    """A gated PixelCNN that zeroes masked weights at each call, pads and crops; labels precede the gates."""

    class Layer(nn.Module):
        def __init__(self, channels: int, kernel: int, first: bool) -> None:
            super().__init__()
            self.first, half = first, kernel // 2
            self.labels = nn.Embedding(3, 2 * channels)
            self.down = nn.Conv2d(channels, 2 * channels, (half + 1, kernel), padding=(half, half))
            self.across = nn.Conv2d(channels, 2 * channels, (1, half + 1), padding=(0, half))
            self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
            self.out = nn.Conv2d(channels, channels, 1)

        def gate(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=1)
            return F.tanh(a) * F.sigmoid(b)

        def forward(self, v: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if self.first:
                self.down.weight.data[:, :, -1].zero_()
                self.across.weight.data[:, :, :, -1].zero_()
            bias = self.labels(y)[:, :, None, None]
            below = self.down(v)[:, :, : v.size(2), :]
            right = self.across(h)[:, :, :, : h.size(3)]
            out = self.out(self.gate(self.link(below) + right + bias))
            return self.gate(below + bias), out if self.first else out + h

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, channels)
        self.layers = nn.ModuleList(self.Layer(channels, 3, number == 0) for number in range(3))
        self.head = nn.Sequential(nn.Conv2d(channels, 9, 1), nn.ReLU(True), nn.Conv2d(9, K, 1))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        v = self.embedding(codes.view(-1)).view(*codes.shape, -1).permute(0, 3, 1, 2)
        h = v
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return self.head(h)


class Buffered(nn.Module):
    """A residual PixelCNN with masks in buffers and batch normalisation; codes are scaled numbers."""

    class Masked(nn.Conv2d):
        def __init__(self, kind: str, *sizes: int) -> None:
            super().__init__(*sizes, padding=sizes[-1] // 2, bias=kind == "B")
            self.register_buffer("mask", torch.ones_like(self.weight))
            middle = sizes[-1] // 2
            self.mask[:, :, middle, middle + (kind == "B") :] = 0
            self.mask[:, :, middle + 1 :] = 0

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = self.Masked("A", 1, channels, 5)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, 1),
                nn.ReLU(),
                self.Masked("B", channels // 2, channels // 2, 3),
                nn.ReLU(),
                nn.Conv2d(channels // 2, channels, 1),
            )
            for _ in range(2)
        )
        self.head = nn.Conv2d(channels, K, 1)
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)

    def forward(self, codes: Tensor) -> Tensor:
        x = codes.unsqueeze(1).to(self.head.weight.dtype) / (K - 1) * 2 - 1
        x = self.norms[0](self.first(x))
        for norm, block in zip(self.norms[1:], self.blocks, strict=True):
            x = norm(x + block(x))
        return F.log_softmax(self.head(F.relu(x)), dim=1)


class Shifted(nn.Module):
    """A network that is causal by shifts (pads, slices), with one-hot codes and grouped convolutions."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.rows = nn.Conv2d(K, channels, (2, 3))
        self.columns = nn.Conv2d(K, channels, (1, 2))
        self.mixed = nn.Conv2d(2 * channels, channels, (1, 2), groups=2)
        self.classes = nn.Linear(3, channels, bias=False)
        self.head = nn.Linear(2 * channels, K)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        x = F.one_hot(codes, K).movedim(-1, 1).to(self.head.weight.dtype)
        above = self.rows(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], dim=3)
        left = self.columns(F.pad(before, (1, 0)))
        both = torch.cat([above, left], dim=1).relu()
        y = self.classes(F.one_hot(labels, 3).to(x.dtype))
        y = self.mixed(F.pad(both, [1, 0])) + y.view(len(y), -1, 1, 1)
        z = torch.cat([y, -y * math.sqrt(0.5)], dim=1).clamp(min=0) if False else torch.cat([y, -y], 1).relu()
        return self.head(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Dilated(nn.Module):
    """A WaveNet that predicts the next code, with weight norm, padded on both sides and cropped."""

    def __init__(self, channels: int = 6, layers: int = 4) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first = nn.Conv1d(K, channels, 1)
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(channels, 2 * channels, 2, dilation=2**n, padding=2**n)) for n in range(layers)
        )
        self.labels = nn.ModuleList(nn.Conv1d(4, 2 * channels, 1, bias=False) for _ in range(layers))
        self.outs = nn.ModuleList(norm(nn.Conv1d(channels, channels, 1)) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.speakers = nn.Embedding(3, 4)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, K, 1)
        )

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        zeros = codes.new_zeros(*codes.shape, K).to(self.first.weight.dtype)
        x = self.first(zeros.scatter_(2, codes.unsqueeze(2), 1).transpose(1, 2))
        g = self.speakers(labels).unsqueeze(-1).expand(-1, -1, codes.shape[1])
        skips = 0
        for conv, label, out, skip in zip(self.convs, self.labels, self.outs, self.skips, strict=True):
            z = conv(x)[:, :, : x.size(-1)] + label(g)
            a, b = z.split(z.size(1) // 2, dim=1)
            z = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + skip(z)
            x = (out(z) + x) * math.sqrt(0.5)
        return self.head(skips)


class Conditioned(nn.Module):
    """A network conditioned on a coarser grid of codes, with coordinates and a channel of ones."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.top = nn.Embedding(4, channels)
        self.refine = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.first = nn.Conv2d(K + 1, channels, (2, 3))
        self.second = nn.Conv2d(channels, channels, (1, 2))
        self.head = nn.Conv2d(channels + 2, K, 1)

    def forward(self, codes: Tensor, top: Tensor) -> Tensor:
        height, width = codes.shape[1:]
        x = F.one_hot(codes, K).permute(0, 3, 1, 2).to(self.head.weight.dtype)
        x = torch.cat([x, x.new_ones(len(x), 1, height, width)], dim=1)
        up = self.top(top).permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = self.first(F.pad(x, (1, 1, 2, 0)))[:, :, :height]
        h = F.relu(h + self.refine(up))
        left = F.pad(F.pad(h, (1, 0))[..., :-1], (1, 0))
        h = F.relu(self.second(left)) + h
        rows = torch.linspace(-1, 1, height, dtype=h.dtype)[:, None].expand(height, width)
        columns = torch.linspace(-1, 1, width, dtype=h.dtype).expand(height, width)
        place = torch.stack([rows, columns]).expand(len(h), -1, -1, -1)
        return self.head(torch.cat([h, place], dim=1))


class Activated(nn.Module):
    """Residual blocks on shifted rows, with every activation that people use."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, channels)
        self.rows = nn.ModuleList(nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)) for _ in range(5))
        self.mix = nn.ModuleList(nn.Conv2d(2 * channels, 2 * channels, 1) for _ in range(5))
        self.left = nn.ModuleList(nn.Conv2d(channels, channels, (2, 2)) for _ in range(5))
        self.head = nn.Conv2d(channels, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).movedim(3, 1) / 2
        x = F.pad(x, (1, 0))[..., :-1]
        activations = [F.elu, F.silu, F.gelu, lambda y: F.leaky_relu(y, 0.2), lambda y: torch.tanh(y) ** 2]
        for rows, mix, left, activation in zip(self.rows, self.mix, self.left, activations, strict=True):
            above = F.pad(rows(activation(x)), (0, 0, 1, 0))[:, :, :-1]
            before = left(F.pad(F.elu(x, 0.5), (1, 0, 1, 0)))
            both = torch.cat([above, before], dim=1)
            y = mix(F.elu(torch.cat([both, -both], dim=1))[:, ::2])
            x = x + F.glu(y, dim=1) * F.hardtanh(x) + torch.sigmoid(before).clamp(max=0.75)
        return self.head(F.relu6(x + 1)) / 4


BLOCKS = [
    "above", "composed", "left", "square", "gate", "glu", "linear", "norm", "layer-norm", "by-halves", "ones",
    "stack", "shuffle", "skip", "halves", "crop", "attend", "sdpa", "place", "scale", "bounds", "cube",
    "label", "condition", "rms",
]  # fmt: skip


class Stack(nn.Module):
    """Blocks of these names one after another; each keeps 4 channels and is causal.

    With several codes at each position, they are embedded together, and the head sees the earlier ones.
    Labels, of 3 classes, and a condition ``(B, 4)`` are what some blocks read.
    """

    def __init__(self, blocks: list[str], seed: int, several: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks, self.several = blocks, several
        self.embedding = nn.Embedding(K, 4)
        self.square = nn.ModuleList(nn.Conv2d(4, 4, (2, 3)) for _ in blocks)
        self.row = nn.ModuleList(nn.Conv2d(4, 4, (1, 3), padding=(0, 1)) for _ in blocks)
        self.column = nn.ModuleList(nn.Conv2d(4, 4, (2, 1)) for _ in blocks)
        self.point = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in blocks)
        self.grouped = nn.ModuleList(nn.Conv2d(8, 4, (1, 2), groups=4) for _ in blocks)
        self.linear = nn.ModuleList(nn.Linear(4, 4) for _ in blocks)
        self.norm = nn.ModuleList(nn.BatchNorm2d(4) for _ in blocks)
        self.head = nn.Conv2d(4, K, 1)
        self.own = nn.ModuleList(nn.Embedding(K, 4) for _ in range(several))
        self.labels = nn.Embedding(3, 4)

    def block(self, name: str, i: int, x: Tensor, first: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        """``(B, 4, H, W)`` -> the same."""
        if name == "sdpa":  # two heads
            flat = [linear(x.flatten(2).mT) for linear in (self.linear[i], self.linear[0], self.linear[-1])]
            q, k, v = (y.unflatten(2, (2, 2)).transpose(1, 2) for y in flat)
            mean = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return mean.transpose(1, 2).flatten(2).mT.reshape(x.shape)
        if name in ("place", "scale"):  # a map of positions, added or multiplied
            place = (torch.arange(x.shape[2])[:, None] - torch.arange(x.shape[3]) * 0.7).to(x.dtype).sin()
            return x + place if name == "place" else x * place
        if name == "bounds":
            low = self.linear[i].bias.view(4, 1, 1)
            return torch.minimum(x.clamp(min=low), first) - x.clamp(low - 1, low + 0.5) / 4
        if name == "cube":
            return F.gelu(x, approximate="tanh") - 0.1 * x**3
        if name == "label":
            return x + self.labels(given[0])[:, :, None, None]
        if name == "condition":
            return x * given[1][:, :, None, None] + given[1].roll(1, 1)[:, :, None, None]
        if name == "rms":
            return F.rms_norm(x.movedim(1, 3), (4,), self.linear[i].bias, eps=0.1).movedim(3, 1)
        if name == "above":  # reads only the row above
            return F.pad(self.row[i](x), (0, 0, 1, 0))[:, :, :-1]
        if name == "composed":  # a row of three, then a column of two, shifted
            return self.column[i](F.pad(self.row[i](x), (0, 0, 2, 0)))[:, :, :-1]
        if name == "left":
            return self.grouped[i](F.pad(torch.cat([x, -x], 1), (1, 0)))
        if name == "square":
            return self.square[i](F.pad(x, (2, 0, 1, 0)))
        if name == "gate":
            a, b = self.point[i](x).chunk(2, 1)
            return a.tanh() * b.sigmoid()
        if name == "glu":
            return F.glu(self.point[i](F.elu(x)), 1)
        if name == "linear":
            return self.linear[i](x.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        if name == "norm":
            return F.silu(self.norm[i](x))
        if name == "layer-norm":
            return F.layer_norm(x.movedim(1, 3), (4,), self.point[i].weight[0, :, 0, 0]).movedim(3, 1)
        if name == "by-halves":  # each half normalised by itself
            halves = x.movedim(1, 3).unflatten(3, (2, 2))
            return F.layer_norm(halves, (2,), eps=1e-3).flatten(3).movedim(3, 1)
        if name == "ones":  # a channel that says where the grid is
            return self.square[i](F.pad(F.pad(x[:, 1:], (0, 0, 0, 0, 0, 1), value=1), (2, 0, 1, 0)))
        if name == "stack":
            a, b = torch.stack([x, first], dim=i % 3).split(1, dim=i % 3)
            return a.squeeze(i % 3) - 0.5 * b.squeeze(i % 3)
        if name == "shuffle":
            return x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape) * 0.7
        if name == "skip":
            return x + first
        if name == "crop":  # a larger grid is activated, then cropped
            return F.elu(F.conv2d(x, self.square[i].weight, padding=(1, 2)))[:, :, :-1, :-2]
        if name == "attend":  # strictly earlier positions where i is odd
            q, k, v = (y.flatten(2).mT for y in (x, self.linear[i](x.movedim(1, 3)).movedim(3, 1), first))
            mask = torch.ones(q.shape[1], q.shape[1]).tril(-(i % 2))[None] == 0
            weights = (q @ k.mT).masked_fill(mask, -torch.inf).softmax(2).masked_fill(mask, 0)
            return (weights @ v).mT.reshape(x.shape)
        return torch.cat([x[:, 2:], F.gelu(x[:, :2])], dim=1) - 0.3

    def forward(self, codes: Tensor, *given: Tensor) -> Tensor:
        embedded = self.embedding(codes)
        x = (embedded.sum(3) if self.several else embedded).movedim(3, 1)
        x = first = F.pad(x, (1, 0))[..., :-1]
        for i, name in enumerate(self.blocks):
            x = self.block(name, i, x, first, given) + (x if i % 2 else 0)
        if not self.several:
            return self.head(x)
        logits = []
        for number, own in enumerate(self.own):
            logits.append(self.head(x).log_softmax(1))
            x = x + own(codes[..., number]).movedim(3, 1)
        return torch.stack(logits, dim=4)
