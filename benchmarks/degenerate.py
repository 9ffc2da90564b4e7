"""Degenerate data, beside random data of the same shape.

The search first excludes codes by rounded scores, then compares the codes that are left. Where code vectors
repeat, tie or lie far away, all could be left. Aim: at most 1.5 times the time on random data, and less than
eager takes. Floor: as in ``nearest``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor

import vqfast
from benchmarks import layer, nearest
from benchmarks.core import Call, Case, Contenders, Floor, Outputs
from benchmarks.machine import DEVICE
from vqfast.functional import nearest_code

RANDOM = "vqfast, random data"
UNCHECKED = (RANDOM, "eager", "as it was")  # only timed: eager's codes are often wrong here
Make = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of vectors and a codebook, others
Layer = TypeVar("Layer", vqfast.VQLayer, vqfast.ResidualVQLayer)


def set_every(nth: int, vectors: Tensor, value: float) -> Tensor:
    """``vectors`` with every ``nth`` one set to ``value``."""
    vectors = vectors.clone()
    vectors[nth // 2 :: nth] = value
    return vectors


def of_codebook(change: Callable[[Tensor], Tensor]) -> Make:
    """Changes the codebook and leaves the vectors."""
    return lambda x, codebook: (x, change(codebook))


KINDS: dict[str, Make] = {
    "all codes zero": of_codebook(torch.zeros_like),
    "all codes equal": of_codebook(lambda c: c[:1].repeat(len(c), 1)),
    "few distinct codes": of_codebook(lambda c: c[torch.arange(len(c), device=c.device) * 7 % 64 % len(c)]),
    "half of the codes zero": of_codebook(lambda c: set_every(2, c, 0)),
    "codes of +-1": of_codebook(torch.sign),
    "codes and vectors of +-1": lambda x, c: (x.sign(), c.sign()),
    "one code far away": of_codebook(lambda c: set_every(len(c), c, 1e20)),
    "every ninth code far away": of_codebook(lambda c: set_every(9, c, 1e20)),
    "codes of all magnitudes": of_codebook(
        lambda c: c * 10 ** torch.linspace(-6, 6, len(c), device=c.device)[:, None]
    ),
    "codes are vectors": lambda x, c: (x, x.repeat(-(-len(c) // len(x)), 1)[: len(c)].clone()),
    "codes uniform in +-1/K": of_codebook(lambda c: (torch.rand_like(c) * 2 - 1) / len(c)),
    "codes near one another": of_codebook(lambda c: c[:1] + 1e-5 * c),
    "every ninth code NaN": of_codebook(lambda c: set_every(9, c, torch.nan)),
    "every ninth code infinite": of_codebook(lambda c: set_every(9, c, torch.inf)),
    "vectors equal": lambda x, c: (x[:1].repeat(len(x), 1), c),
    "vectors zero": lambda x, c: (torch.zeros_like(x), c),
    "vectors zero, codes of +-1": lambda x, c: (torch.zeros_like(x), c.sign()),
    "vectors between two codes": lambda x, c: (
        (c[torch.randint_like(x[:, 0], len(c)).long()] + c[torch.randint_like(x[:, 0], len(c)).long()]) / 2,
        c,
    ),
    "half of the vectors NaN": lambda x, c: (set_every(2, x, torch.nan), c),
    "all shifted by 1000": lambda x, c: (x + 1000, c + 1000),
}


def check(data: tuple[Tensor, Tensor, Tensor, Tensor], outputs: Outputs) -> None:
    """Each chosen code is as near as the nearest in float64, and the first of equal code vectors."""
    x, codebook = data[0][:128].double(), data[1].double()
    exact = torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    exact.masked_fill_(~codebook.isfinite().all(1), torch.inf)
    finite = x.isfinite().all(1)
    for name in outputs.keys() - set(UNCHECKED):
        indices = outputs[name][: len(x)]
        chosen = exact.gather(1, indices[:, None])[:, 0]
        assert (chosen <= exact.amin(1) * (1 + 1e-7))[finite].all(), f"{name} finds wrong codes"
        repeats = (data[1][indices[:16], None] == data[1]).all(-1)
        assert (repeats.int().argmax(1) == indices[:16])[finite[:16]].all(), (
            f"{name} finds later ones of equal codes"
        )


def search(n: int, k: int, d: int, kind: str) -> Case:
    """``n`` vectors of ``d`` channels, ``k`` code vectors."""

    def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, codebook = torch.randn(n, d, device=DEVICE), torch.randn(k, d, device=DEVICE)
        return *KINDS[kind](x, codebook), x, codebook

    return Case(
        name=f"N {n}, K {k}, D {d}: {kind}",
        shape={"N": n, "K": k, "D": d},
        contenders={
            "vqfast": lambda: lambda data: nearest_code(*data[:2]),
            RANDOM: lambda: lambda data: nearest_code(*data[2:]),
            "eager": lambda: lambda data: nearest.eager(*data[:2]),
        },
        data=data,
        check=check,
        floor=Floor(2.0 * n * k * d, 4.0 * (n * d + k * d) + 8.0 * n),
        slow=["eager"] if n * k > 3e7 else (),
    )


def with_codebook(layer: Layer, codebook: Tensor) -> Layer:
    """The layer with ``codebook`` in every stage."""
    for stage in layer.stages if isinstance(layer, vqfast.ResidualVQLayer) else [layer]:
        stage.codebook.data.copy_(codebook)
    return layer.to(DEVICE)


def finite(data: Tensor, outputs: Outputs) -> None:
    """Outputs are finite, and of equal codes the first is chosen."""
    for name in outputs.keys() - set(UNCHECKED):
        tensors = outputs[name] if isinstance(outputs[name], tuple) else (outputs[name],)
        for tensor in tensors:
            assert tensor.isfinite().all(), f"{name} isn't finite"
            if not tensor.is_floating_point():
                assert (tensor == 0).all(), f"{name} finds later ones of equal codes"


def zeros(name: str, shape: tuple[int, ...], contenders: Contenders) -> Case:
    """A layer whose codebooks are all zeros, as many are before their first step."""
    data = lambda: torch.randn(shape, device=DEVICE)  # noqa: E731
    return Case(f"{name}, zeros, {', '.join(map(str, shape))}", {}, contenders, data, finite, memory=False)


def training(k: int, shape: tuple[int, int, int, int], decay: float | None) -> Case:
    """A training step of ``VQLayer``, by gradients or by a moving average."""
    d = shape[1]

    def build(codebook: Tensor) -> Call:
        module = with_codebook(vqfast.VQLayer(k, d, beta=layer.BETA, decay=decay, **layer.STILL), codebook)
        # set again for each step, because zeros that learn don't stay zeros
        return lambda z_e: layer.train(with_codebook(module, codebook), z_e)

    contenders: Contenders = {
        "vqfast": partial(build, torch.zeros(k, d)),
        RANDOM: partial(build, layer.random_codebook(k, d)),
        "eager": lambda: partial(layer.train, layer.EagerVQ(torch.zeros(k, d, device=DEVICE))),
    }
    return zeros(f"{'VQ' if decay is None else 'EMA VQ'} step, K {k}", shape, contenders)


def encoding(stages: int, k: int, shape: tuple[int, int, int]) -> Case:
    """``ResidualVQLayer.encode``."""
    sizes = k, shape[1], stages

    def build(codebook: Tensor) -> Call:
        return with_codebook(vqfast.ResidualVQLayer(*sizes, beta=layer.BETA), codebook).encode

    contenders = {
        "vqfast": partial(build, torch.zeros(k, shape[1])),
        RANDOM: partial(build, layer.random_codebook(k, shape[1])),
    }
    return zeros(f"residual encode, {stages} stages, K {k}", shape, contenders)


def codec(name: str, quantizer: str, shape: tuple[int, int, int], *options: float) -> Case:
    """The quantiser of a codec of transformers, with codebooks of zeros as it is built."""

    def build(fast: bool, random: bool) -> Call:
        package = f"transformers.models.{name.lower()}"
        config = getattr(import_module(f"{package}.configuration_{name.lower()}"), f"{name}Config")()
        module = getattr(import_module(f"{package}.modeling_{name.lower()}"), quantizer)(config).eval()
        for key, tensor in module.state_dict().items():
            if key.endswith((".embed", ".embed_sum")):
                tensor.normal_() if random else tensor.zero_()
        module = module.to(DEVICE)
        if fast:
            assert vqfast.accelerate(module), f"{name} isn't accelerated"
        return torch.no_grad()(lambda x: module.encode(x, *options))

    contenders = {
        "vqfast": partial(build, True, False),
        RANDOM: partial(build, True, True),
        "as it was": partial(build, False, False),
    }
    return zeros(f"accelerate, {name}", shape, contenders)


SHAPES = [(32768, 512, 64), (8192, 2048, 256), (8192, 65536, 8), (32768, 1024, 8)]
CASES = [search(*shape, kind) for shape in SHAPES for kind in KINDS]
CASES += [training(512, layer.IMAGES, decay) for decay in (None, 0.8)]
CASES += [
    encoding(8, 1024, (16, 128, 750)),
    codec("Encodec", "EncodecResidualVectorQuantizer", (1, 128, 750), 24.0),
    codec("Mimi", "MimiSplitResidualVectorQuantizer", (1, 512, 125)),
]
