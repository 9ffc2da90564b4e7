"""Residual VQ as in audio codecs: a training step with moving averages, and encoding.

Floor: the operations of the searches of all stages.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import vqfast
from benchmarks.core import Call, Case, Floor, Outputs
from benchmarks.layer import BETA, STILL, random_codebook, train
from benchmarks.machine import DEVICE

DECAY = 0.8


def residual_vq_layer(sizes: tuple[int, int, int], training: bool) -> Call:
    """vqfast's layer."""
    q, k, d = sizes
    layer = vqfast.ResidualVQLayer(k, d, q, beta=BETA, decay=DECAY, **STILL).to(DEVICE)
    layer.train(training)
    for stage, codebook in zip(layer.stages, random_codebook(*sizes), strict=True):
        stage.codebook.copy_(codebook)
    return partial(train, layer) if training else layer.encode


def peer(sizes: tuple[int, int, int], training: bool) -> Call:
    """The layer of vector-quantize-pytorch."""
    from vector_quantize_pytorch import ResidualVQ

    q, k, d = sizes
    options = {"commitment_weight": BETA, "rotation_trick": False}
    layer = ResidualVQ(dim=d, num_quantizers=q, codebook_size=k, decay=DECAY, **options).to(DEVICE)
    for stage, codebook in zip(layer.train(training).layers, random_codebook(*sizes), strict=True):
        stage._codebook.embed.data.copy_(codebook[None])
        stage._codebook.embed_avg.data.copy_(codebook[None])

    def channels_first(z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = layer(z_e.transpose(1, 2))
        return quantized.transpose(1, 2), indices, loss

    return partial(train, channels_first) if training else torch.no_grad()(lambda z: channels_first(z)[1])


def check(sizes: tuple[int, int, int], data: Tensor, outputs: Outputs) -> None:
    """Codes equal float64's but for near ties; quantised vectors and the gradient follow from the codes.

    Only vqfast's gradient is checked: vector-quantize-pytorch goes straight through each stage by itself.
    """
    residual, want = data[:1].transpose(1, 2)[0].double(), []
    for codebook in random_codebook(*sizes).double():
        distances = torch.cdist(residual, codebook, compute_mode="donot_use_mm_for_euclid_dist")
        want.append(distances.argmin(1))
        residual = residual - codebook[want[-1]]
    for name, output in outputs.items():
        indices = output[1] if isinstance(output, tuple) else output
        agree = (indices[0] == torch.stack(want, -1)).all(-1).double().mean()
        assert agree > 0.99, f"{name} agrees with float64 on {agree:.1%} of the vectors"
        if isinstance(output, tuple):
            _check_step(sizes, data, name, *output)


def _check_step(
    sizes: tuple[int, int, int], data: Tensor, name: str, quantized: Tensor, indices: Tensor, grad: Tensor
) -> None:
    residual = data[:1].double()
    slope = torch.zeros_like(residual)
    for codebook, chosen in zip(random_codebook(*sizes).double(), indices[:1].unbind(-1), strict=True):
        residual = residual - codebook[chosen].transpose(1, 2)
        slope = slope + 2 * BETA * residual / data.numel()
    want = data[:1].double() - residual
    torch.testing.assert_close(quantized[:1].double(), want, rtol=1e-4, atol=1e-4, msg=f"{name}'s vectors")
    if name == "vqfast":
        want = slope + 2 * want / data.numel()
        atol = 1e-3 / data.numel()
        torch.testing.assert_close(grad[:1].double(), want, rtol=1e-3, atol=atol, msg=f"{name}'s gradient")


def residual(name: str, batch: int, frames: int, sizes: tuple[int, int, int], training: bool) -> Case:
    """``batch`` clips of ``frames`` vectors; ``sizes``: stages, K, D."""
    q, k, d = sizes
    return Case(
        name=f"{name}, {batch}, {d}, {frames}; {q} stages, K {k}",
        shape={"N": batch * frames, "Q": q, "K": k, "D": d},
        contenders={
            "vqfast": partial(residual_vq_layer, sizes, training),
            "vector-quantize-pytorch": partial(peer, sizes, training),
        },
        data=lambda: torch.randn(batch, d, frames, device=DEVICE),
        check=partial(check, sizes),
        floor=Floor(2.0 * q * batch * frames * k * d),
    )


CASES = [
    residual("training", 16, 750, (8, 1024, 128), True),
    residual("encode", 16, 750, (8, 1024, 128), False),
]
