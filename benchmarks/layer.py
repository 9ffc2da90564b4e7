"""VQLayer's training step: forward and backward, from a random codebook that all contenders share.

Floor: the operations of the search, or the bytes of the vectors, the quantised vectors and their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks import core
from benchmarks.core import Call, Case, Contenders, Floor, Outputs
from benchmarks.machine import DEVICE

BETA = 0.25
STILL: Any = {"kmeans_init": False, "revive_below": 0}  # as the peers' layers are by default
Step = tuple[Tensor, Tensor, Tensor]  # quantised vectors, codes, the input's gradient


class EagerVQ(nn.Module):
    """The quantiser as public repositories write it in plain PyTorch."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook.clone())

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises ``z_e`` of shape ``(B, D, H, W)``: quantised vectors, indices, loss."""
        x = z_e.permute(0, 2, 3, 1).contiguous()
        flat, codebook = x.flatten(0, 2), self.codebook
        distances = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * flat @ codebook.T
        indices = distances.argmin(1)
        z_q = F.embedding(indices, codebook).view_as(x)
        loss = F.mse_loss(z_q, x.detach()) + BETA * F.mse_loss(z_q.detach(), x)
        return (x + (z_q - x).detach()).permute(0, 3, 1, 2).contiguous(), indices.view(x.shape[:-1]), loss


def random_codebook(*shape: int) -> Tensor:
    """The codebook that all contenders start from."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def train(layer: Callable[[Tensor], Any], z_e: Tensor) -> Step:
    """One training step."""
    z_e = z_e.clone().requires_grad_()
    quantized, indices, loss = layer(z_e)
    torch.autograd.backward(quantized.square().mean() + loss.sum())
    assert z_e.grad is not None
    return quantized.detach(), indices, z_e.grad


def vq_layer(k: int, d: int, decay: float | None) -> Call:
    """vqfast's layer."""
    layer = vqfast.VQLayer(k, d, beta=BETA, decay=decay, **STILL).to(DEVICE)
    layer.codebook.data.copy_(random_codebook(k, d))
    return partial(train, layer)


def eager(k: int, d: int, compiled: bool = False) -> Call:
    """``EagerVQ``, plain or compiled."""
    layer = EagerVQ(random_codebook(k, d))
    return partial(train, core.compiled(layer) if compiled else layer)


def peer(k: int, d: int, decay: float) -> Call:
    """The layer of vector-quantize-pytorch."""
    from vector_quantize_pytorch import VectorQuantize

    options = {"accept_image_fmap": True, "rotation_trick": False}
    layer = VectorQuantize(d, k, decay=decay, commitment_weight=BETA, **options).to(DEVICE)
    layer._codebook.embed.data.copy_(random_codebook(1, k, d))
    layer._codebook.embed_avg.data.copy_(random_codebook(1, k, d))
    return partial(train, layer)


def check(k: int, data: Tensor, outputs: Outputs) -> None:
    """Chosen codes are the nearest but for rounding; the input's gradient is the derivative of the loss."""
    z = data.movedim(1, -1).flatten(0, -2)
    codebook = random_codebook(k, z.shape[1])
    for name, (quantized, indices, grad) in outputs.items():
        q, grad = (t.movedim(1, -1).flatten(0, -2) for t in (quantized, grad))
        torch.testing.assert_close(
            q, codebook[indices.flatten()], rtol=1e-4, atol=1e-5, msg=f"{name}'s codes"
        )
        nearest = torch.cdist(z[:1024].double(), codebook.double()).amin(1)
        chosen = (z - q)[:1024].double().norm(dim=1)
        assert (chosen <= nearest * (1 + 1e-4) + 1e-4).all(), f"{name}'s search"
        want = 2 * (q + BETA * (z - q)) / z.numel()
        torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-3 / z.numel(), msg=f"{name}'s gradient")


def step(name: str, shape: tuple[int, int, int, int], k: int, contenders: Contenders) -> Case:
    """One training step with ``z_e`` of ``shape`` ``(B, D, H, W)`` and ``k`` code vectors."""
    batch, d, height, width = shape
    n = batch * height * width
    return Case(
        name=f"{name}, {', '.join(map(str, shape))}, K {k}",
        shape={"N": n, "K": k, "D": d},
        contenders=contenders,
        data=lambda: torch.randn(shape, device=DEVICE),
        check=partial(check, k),
        floor=Floor(2.0 * n * k * d, 4 * 4.0 * n * d),
    )


def by_gradient(shape: tuple[int, int, int, int], k: int) -> Case:
    """The codebook learns by gradients."""
    d = shape[1]
    contenders = {
        "vqfast": partial(vq_layer, k, d, None),
        "eager": partial(eager, k, d),
        "compiled": partial(eager, k, d, compiled=True),
    }
    return step("VQ", shape, k, contenders)


def by_average(shape: tuple[int, int, int, int], k: int, decay: float = 0.8) -> Case:
    """The codebook learns by a moving average."""
    d = shape[1]
    contenders = {
        "vqfast": partial(vq_layer, k, d, decay),
        "vector-quantize-pytorch": partial(peer, k, d, decay),
    }
    return step("EMA VQ", shape, k, contenders)


IMAGES = (32, 64, 32, 32)
CASES = [by_gradient(IMAGES, 512), by_average(IMAGES, 512), by_gradient((8, 256, 32, 32), 8192)]
