"""Masked convolutions and priors' training steps against plain PyTorch: ``python -m benchmarks.masked_conv``.

Baselines are what people write: kernels times a mask, stacks padded and cropped, gates and ReLUs as passes
of their own. Before anything is timed ours must give their values. Runs are interleaved; medians count. The
floor is the visible taps' multiply-adds at the machine's peak, forward and as often again for each gradient.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import record
from benchmarks.nearest import peak_flops
from vqfast import PixelCNN
from vqfast.functional import masked_conv2d
from vqfast.prior import ResidualPixelCNN

ROUNDS = 7


class PlainMasked(nn.Conv2d):
    """The convolution that circulates: all taps, of a kernel times a mask."""

    def __init__(self, in_channels: int, out_channels: int, size: int, mask_type: str) -> None:
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        taps = size * size // 2 + (mask_type == "B")
        self.register_buffer("mask", (torch.arange(size * size).view(size, size) < taps).float())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)``."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def plain_gate(x: Tensor) -> Tensor:
    """The gate, five passes."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class PlainGatedLayer(nn.Module):
    """A gated layer of the common repositories: padded, convolved, cropped; mask A by zeroed weights."""

    def __init__(self, channels: int, size: int, mask_type: str) -> None:
        super().__init__()
        half = size // 2
        self.mask_type = mask_type
        self.vertical = nn.Conv2d(channels, 2 * channels, (half + 1, size), padding=(half, half))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, half + 1), padding=(0, half))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks, ``(B, channels, H, W)``."""
        if self.mask_type == "A":
            self.vertical.weight.data[:, :, -1].zero_()
            self.horizontal.weight.data[:, :, :, -1].zero_()
        above = self.vertical(v)[:, :, : v.shape[2]]
        across = self.horizontal(h)[:, :, :, : h.shape[3]] + self.vertical_to_horizontal(above)
        out = self.output(plain_gate(across))
        return plain_gate(above), out + h if self.mask_type == "B" else out


class PlainGated(nn.Module):
    """The gated PixelCNN of the common repositories."""

    def __init__(self, num_embeddings: int, channels: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, channels)
        kinds = [(7, "A")] + [(3, "B")] * (num_layers - 1)
        self.layers = nn.ModuleList(PlainGatedLayer(channels, *kind) for kind in kinds)
        self.head = nn.Sequential(nn.Conv2d(channels, 512, 1), nn.ReLU(), nn.Conv2d(512, num_embeddings, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h)
        return self.head(h)

    def load(self, prior: PixelCNN) -> None:
        """Our weights; what mask A hides is a last row or column of zeros."""
        state = prior.state_dict()
        for name, pad in (("vertical", [0, 0, 0, 1]), ("horizontal", [0, 1])):
            state[f"layers.0.{name}.weight"] = F.pad(state[f"layers.0.{name}.weight"], pad)
        self.load_state_dict(state)


class PlainResidualBlock(nn.Module):
    """1x1, masked 3x3, 1x1, a ReLU after each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, channels // 2, 1)
        self.conv = PlainMasked(channels // 2, channels // 2, 3, "B")
        self.grow = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)``."""
        return x + self.grow(self.conv(self.shrink(x).relu()).relu()).relu()


class PlainResidual(nn.Module):
    """The Keras example's prior in PyTorch."""

    def __init__(self, num_embeddings: int, channels: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.first = PlainMasked(num_embeddings, channels, 7, "A")
        self.blocks = nn.ModuleList(PlainResidualBlock(channels) for _ in range(2))
        self.layers = nn.ModuleList(PlainMasked(channels, channels, 1, "B") for _ in range(2))
        self.head = nn.Conv2d(channels, num_embeddings, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        x = self.first(F.one_hot(codes, self.num_embeddings).permute(0, 3, 1, 2).float()).relu()
        for block in self.blocks:
            x = block(x)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)

    def load(self, prior: ResidualPixelCNN) -> None:
        """Our weights."""
        self.load_state_dict(prior.state_dict(), strict=False)  # which has no masks


def ops(size: int, mask_type: str, layout: torch.memory_format) -> tuple[dict[str, Callable], float]:
    """One convolution of (16, 128, 32, 32) to 128 channels, by each; its multiply-adds."""
    x = torch.randn(16, 128, 32, 32).to(memory_format=layout).requires_grad_()
    conv = PlainMasked(128, 128, size, mask_type)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * conv.mask, bias, padding=size // 2)

    compiled = torch.compile(plain)
    parameters = x, conv.weight, conv.bias
    calls = {
        "vqfast": lambda: masked_conv2d(*parameters, mask_type),
        "conv2d": lambda: plain(*parameters),
        "compiled conv2d": lambda: compiled(*parameters),
    }
    return calls, 16 * 32 * 32 * 128 * 128 * conv.mask.sum().item()


def backward(call: Callable[[], Tensor], grad: Tensor) -> None:
    """A call and its gradients."""
    call().backward(grad)


def training(prior: nn.Module, plain: nn.Module, shape: tuple[int, ...]) -> dict[str, Callable]:
    """A step of each: forward, cross-entropy, backward, Adam."""
    plain.load(prior)
    codes = torch.randint(prior.num_embeddings, shape)

    def step(model: nn.Module) -> Callable[[], Tensor]:
        optimizer = torch.optim.Adam(model.parameters(), 3e-4)

        def run() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(codes), codes)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    return {"vqfast": step(prior), "plain": step(plain)}


PRIORS = {
    "gated prior": (
        lambda: PixelCNN(num_embeddings=512, channels=128, num_layers=15),
        lambda: PlainGated(512, 128, 15),
        (8, 32, 32),
    ),
    "Keras prior": (
        lambda: ResidualPixelCNN(num_embeddings=128, channels=128),
        lambda: PlainResidual(128, 128),
        (128, 7, 7),
    ),
}


def check(calls: dict[str, Callable[[], Tensor]]) -> None:
    """The first call of each gives the same values.

    Raises:
        AssertionError: it doesn't.
    """
    first = {name: call().detach() for name, call in calls.items()}
    for name, value in first.items():
        torch.testing.assert_close(value, first["vqfast"], rtol=1e-4, atol=1e-4, msg=name)


def timed(calls: dict[str, Callable], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each call, interleaved."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - began)
    return samples


def peak_memory(name: str, who: str) -> int:
    """Bytes that training steps of one prior add to a process of its own at most."""
    code = f"import benchmarks.masked_conv as m; print(m.grown({name!r}, {who!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def grown(name: str, who: str) -> int:
    """By how much this process's peak grows over two steps."""
    torch.manual_seed(0)
    make, make_plain, shape = PRIORS[name]
    step = training(make(), make_plain(), shape)[who]
    training(ResidualPixelCNN(8, 8), PlainResidual(8, 8), (1, 2, 2))[who]()  # what is loaded on first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    step(), step()
    return status("VmHWM") - before


def status(field: str) -> int:
    """Bytes of memory that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure() -> dict[str, object]:
    """All cases."""
    rows = []

    def add(case: str, calls: dict[str, Callable], **more: object) -> None:
        rows.append({"case": case, "seconds": timed(calls), **more})
        print(line(rows[-1]), flush=True)

    peak = peak_flops()
    for size, mask_type in ((3, "B"), (7, "A"), (1, "B")):
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(0)
            calls, products = ops(size, mask_type, layout)
            check(calls)
            floor = 2 * products / peak
            grad = torch.randn(16, 128, 32, 32).to(memory_format=layout)
            kind = f"{size}x{size} {mask_type}, {str(layout).removeprefix('torch.').removesuffix('_format')}"
            with torch.no_grad():
                add(f"{kind}, forward", calls, floor=floor)
            both = {name: partial(backward, call, grad) for name, call in calls.items()}
            add(f"{kind}, and backward", both, floor=3 * floor)
    for name, (make, make_plain, shape) in PRIORS.items():
        torch.manual_seed(0)
        calls = training(make(), make_plain(), shape)
        check(calls)
        memory = {who: peak_memory(name, who) for who in calls}
        add(f"{name}, training step", calls, memory=memory)
    return {"peak": peak, "rows": rows}


def line(row: dict) -> str:
    """A row for people."""
    median = {name: statistics.median(samples) for name, samples in row["seconds"].items()}
    ours = median.pop("vqfast")
    peers = ", ".join(f"{name} {seconds / ours:.2f}x" for name, seconds in median.items())
    part = f"{row['floor'] / ours:.0%}" if "floor" in row else ""
    memory = ", ".join(f"{who} {size / 2**20:.0f} MiB" for who, size in row.get("memory", {}).items())
    return f"| {row['case']} | {ours * 1e3:.1f} ms | {part} | {peers} | {memory} |"


def table(path: Path) -> str:
    """The record as a Markdown table."""
    head = "| | vqfast | of the floor | peers | peak memory |\n|---|---|---|---|---|\n"
    return head + "\n".join(map(line, json.loads(path.read_text())["rows"]))


if __name__ == "__main__":
    record.write("masked-conv", measure(), table)
