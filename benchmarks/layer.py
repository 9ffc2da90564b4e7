"""VQLayer's training step: forward and backward, from a random codebook that all contenders share.

Floor: the products of the search, or the bytes of vectors, quantised vectors and two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks import core
from benchmarks.core import Call, Case, Floor, Outputs
from benchmarks.machine import DEVICE

BETA = 0.25
Step = tuple[Tensor, Tensor, Tensor]  # quantised vectors, codes, the input's gradient


class EagerVQ(nn.Module):
    """The layer as it circulates in plain PyTorch."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Embedding.from_pretrained(codebook, freeze=False)

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, D, H, W)``."""
        x = z_e.permute(0, 2, 3, 1).contiguous()
        flat, codes = x.flatten(0, 2), self.codebook.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
        indices = distances.argmin(1)
        z_q = self.codebook(indices).view_as(x)
        loss = F.mse_loss(z_q, x.detach()) + BETA * F.mse_loss(z_q.detach(), x)
        return (x + (z_q - x).detach()).permute(0, 3, 1, 2).contiguous(), indices.view(x.shape[:-1]), loss


def codes(*shape: int) -> Tensor:
    """The codebook that all start from."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def train(layer: nn.Module, z_e: Tensor) -> Step:
    """One step."""
    z_e = z_e.clone().requires_grad_()
    quantized, indices, loss = layer(z_e)
    (quantized.square().mean() + loss.sum()).backward()
    return quantized.detach(), indices, z_e.grad


def ours(k: int, d: int, decay: float | None) -> Call:
    """``VQLayer``."""
    layer = vqfast.VQLayer(k, d, beta=BETA, decay=decay).to(DEVICE)
    layer.codebook.data.copy_(codes(k, d))
    return partial(train, layer)


def eager(k: int, d: int, compiled: bool = False) -> Call:
    """The common layer, plain or through torch.compile."""
    layer = EagerVQ(codes(k, d))
    return partial(train, core.compiled(layer) if compiled else layer)


def peer(k: int, d: int, decay: float) -> Call:
    """vector-quantize-pytorch's."""
    from vector_quantize_pytorch import VectorQuantize

    options = {"accept_image_fmap": True, "rotation_trick": False}
    layer = VectorQuantize(d, k, decay=decay, commitment_weight=BETA, **options).to(DEVICE)
    layer._codebook.embed.data.copy_(codes(1, k, d))
    layer._codebook.embed_avg.data.copy_(codes(1, k, d))
    return partial(train, layer)


def check(k: int, data: Tensor, outputs: Outputs) -> None:
    """Codes are the nearest but for rounding; the gradient is what the loss's formula says."""
    z = data.movedim(1, -1).flatten(0, -2)
    codebook = codes(k, z.shape[1])
    for name, (quantized, indices, grad) in outputs.items():
        q, grad = (t.movedim(1, -1).flatten(0, -2) for t in (quantized, grad))
        torch.testing.assert_close(
            q, codebook[indices.flatten()], rtol=1e-4, atol=1e-5, msg=f"{name}'s codes"
        )
        some = torch.cdist(z[:1024].double(), codebook.double()).amin(1)
        assert ((z - q)[:1024].double().norm(dim=1) <= some * (1 + 1e-4) + 1e-4).all(), f"{name}'s search"
        want = 2 * (q + BETA * (z - q)) / z.numel()
        torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-3 / z.numel(), msg=f"{name}'s gradient")


def step(
    name: str, shape: tuple[int, int, int, int], k: int, contenders: dict[str, Callable[[], Call]]
) -> Case:
    """One training step of ``z_e`` of ``shape`` ``(B, D, H, W)``."""
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
    """A codebook that learns by its loss."""
    d = shape[1]
    contenders = {
        "vqfast": partial(ours, k, d, None),
        "eager": partial(eager, k, d),
        "compiled": partial(eager, k, d, compiled=True),
    }
    return step("VQ", shape, k, contenders)


def by_average(shape: tuple[int, int, int, int], k: int, decay: float = 0.8) -> Case:
    """A codebook that learns by a moving average."""
    d = shape[1]
    contenders = {
        "vqfast": partial(ours, k, d, decay),
        "vector-quantize-pytorch": partial(peer, k, d, decay),
    }
    return step("EMA VQ", shape, k, contenders)


IMAGES = (32, 64, 32, 32)
CASES = [by_gradient(IMAGES, 512), by_average(IMAGES, 512), by_gradient((8, 256, 32, 32), 8192)]
