"""Training steps and encoding of the layers against their peers: ``python -m benchmarks.layer``.

A training step is forward and backward with equal settings. Runs are interleaved; medians count.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# each library may bring an OpenMP: idle threads of one mustn't spin while the other is timed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks import record

ROUNDS = 7


class EagerVQ(nn.Module):
    """The layer as it circulates in plain PyTorch."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(num_embeddings, embedding_dim)
        nn.init.uniform_(self.codebook.weight, -1 / num_embeddings, 1 / num_embeddings)

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, D, H, W)``."""
        x = z_e.permute(0, 2, 3, 1).contiguous()
        flat, codes = x.flatten(0, 2), self.codebook.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
        indices = distances.argmin(1)
        z_q = self.codebook(indices).view_as(x)
        loss = F.mse_loss(z_q, x.detach()) + 0.25 * F.mse_loss(z_q.detach(), x)
        return (x + (z_q - x).detach()).permute(0, 3, 1, 2).contiguous(), indices, loss


class ChannelsLast(nn.Module):
    """A peer that wants ``(B, T, D)``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, D, T)``."""
        quantized, indices, loss = self.layer(z_e.transpose(1, 2))
        return quantized.transpose(1, 2), indices, loss


def train(layer: nn.Module, z_e: Tensor) -> None:
    """One step."""
    quantized, _, loss = layer.train()(z_e.clone().requires_grad_())
    (quantized.square().mean() + loss.sum()).backward()


@torch.no_grad()
def encode(layer: nn.Module, z_e: Tensor) -> None:
    """Codes only, where the layer can."""
    layer.eval()
    layer.encode(z_e) if hasattr(layer, "encode") else layer(z_e)


def cases() -> dict[str, tuple[Callable, tuple[int, ...], dict[str, nn.Module]]]:
    """What is done, to which shape, by whom; vqfast first."""
    image, audio = (32, 64, 32, 32), (16, 128, 750)
    found = {
        "VQ, training": (train, image, {"vqfast": vqfast.VQLayer(512, 64), "eager": EagerVQ(512, 64)}),
        "EMA VQ, training": (train, image, {"vqfast": vqfast.VQLayer(512, 64, decay=0.8)}),
        "residual VQ, training": (train, audio, {"vqfast": vqfast.ResidualVQLayer(8, 1024, 128, decay=0.8)}),
        "residual VQ, encode": (encode, audio, {"vqfast": vqfast.ResidualVQLayer(8, 1024, 128, decay=0.8)}),
    }
    try:
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize
    except ImportError:
        print("vector-quantize-pytorch is absent: pip install vector-quantize-pytorch")
        return found
    peer = "vector-quantize-pytorch"
    vq = VectorQuantize(64, 512, decay=0.8, commitment_weight=0.25, accept_image_fmap=True)
    found["EMA VQ, training"][2][peer] = vq
    for task in ("training", "encode"):
        rvq = ResidualVQ(dim=128, num_quantizers=8, codebook_size=1024, decay=0.8)
        found[f"residual VQ, {task}"][2][peer] = ChannelsLast(rvq)
    return found


def measure() -> dict[str, object]:
    """All cases."""
    rows = []
    for name, (task, shape, layers) in cases().items():
        torch.manual_seed(0)
        samples: dict[str, list[float]] = {peer: [] for peer in layers}
        for _ in range(ROUNDS):
            z_e = torch.randn(shape)
            for peer, layer in layers.items():
                began = time.perf_counter()
                task(layer, z_e)
                samples[peer].append(time.perf_counter() - began)
        rows.append({"case": name, "shape": shape, "seconds": samples})
        print(line(rows[-1]), flush=True)
    return {"rows": rows}


def line(row: dict) -> str:
    """A row for people."""
    median = {name: statistics.median(samples) for name, samples in row["seconds"].items()}
    ours = median.pop("vqfast")
    peers = ", ".join(f"{name} {seconds / ours:.1f}x" for name, seconds in median.items())
    return f"| {row['case']} | {', '.join(map(str, row['shape']))} | {ours * 1e3:.1f} ms | {peers} |"


def table(path: Path) -> str:
    """The record as a Markdown table."""
    rows = json.loads(path.read_text())["rows"]
    return "| | shape | vqfast | peers |\n|---|---|---|---|\n" + "\n".join(map(line, rows))


if __name__ == "__main__":
    record.write("layer", measure(), table)
