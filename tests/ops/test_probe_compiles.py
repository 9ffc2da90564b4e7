"""What a probe compiles, and what the call after it: Triton asks a hook before it would compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.compiled import target_of
from tests.sampling.programs import TWO_STREAMS, Programmed
from vqfast import PixelCNN, PixelSNAIL, WaveNet
from vqfast.ops import registry
from vqfast.ops.masked_conv import probe as conv_probe
from vqfast.ops.modules import module
from vqfast.ops.residual import probe as residual_probe
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import probe as sampler_probe
from vqfast.sampling.executors import torch as plain
from vqfast.sampling.executors import triton as sampler
from vqfast.sampling.request import Request

pytestmark = [
    pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel isn't compiled"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
CPU, D = torch.device("cpu"), 64
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


class Beside:
    """Launches the Triton backend, whose kernels don't run here, and gives what the reference gives."""

    def __init__(self, op: str) -> None:
        self.triton, self.reference = module(op, "triton"), module(op, "reference")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def both(*arguments: Any) -> Any:
            getattr(self.triton, name)(*arguments)
            return getattr(self.reference, name)(*arguments)

        return both


class Sampling:
    """The same of the sampler, for which the torch executor draws."""

    def __init__(self, request: Request, tuning: Any) -> None:
        self.request, self.tuning = request, tuning

    def draw(self) -> Tensor:
        sampler.Sampling(self.request, self.tuning).draw()
        return plain.run(self.request)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """By kernel what Triton would compile for an H100."""
    from triton import knobs
    from triton.runtime import driver

    found: dict[str, set[str]] = {}

    def hook(*, key: str, fn: Any, **_: Any) -> bool:
        found.setdefault(fn.name.rpartition(".")[2], set()).add(key)
        return True  # which leaves it uncompiled

    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", hook)
    monkeypatch.setattr(
        Tensor, "new_empty", Tensor.new_zeros
    )  # no kernel writes results, and some are indices
    monkeypatch.setattr(sampler, "members_of", lambda launch, groups, _: min(launch.members, 132 // groups))
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target_of("sm_90"),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    yield found
    if torch.cuda.is_available():
        driver.reset_active()


def counts(asked: dict[str, set[str]]) -> dict[str, int]:
    return {name: len(keys) for name, keys in asked.items()}


def probed(asked: dict[str, set[str]], op: str, dtype: torch.dtype, part: Any) -> dict[str, int]:
    """What the probe compiles."""
    asked.clear()
    kernels = (
        SimpleNamespace(Sampling=Sampling, tuning_of=sampler.tuning_of) if op == "sampler" else Beside(op)
    )
    module(op, "probe").check(kernels, module(op, "reference"), CPU, dtype, D, part)
    return counts(asked)


def test_a_search_is_vouched_for(asked) -> None:
    from vqfast.ops.nearest import triton as nearest

    found = probed(asked, "nearest", torch.float32, None)
    assert found == {"_prepare": 1, "_search": 1}
    nearest.nearest(torch.zeros(4096, D), torch.zeros(1000, D))
    assert counts(asked) == found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "dtype, images, side",
    [(torch.float32, 2, 32), (torch.bfloat16, 32, 7), (torch.float32, 1, 28), (torch.float32, 8, 6)],
    ids=str,
)
def test_training_steps_and_codes_are_vouched_for(asked, dtype, images, side, layout) -> None:
    from vqfast.ops.residual import triton as residual

    z, codebook = torch.zeros(images, D, side, side, dtype=dtype), torch.zeros(512, D, dtype=dtype)
    z = z.contiguous(memory_format=layout)
    for several, books in ((False, codebook), (True, torch.stack([codebook] * 2))):
        found = probed(asked, "residual", dtype, residual_probe.part_of("quantize", several, z, 1))
        assert found == {"_prepare": 1, "_search": 1, "_count": 1}
        out = residual.quantize(z, books, 1, True)
        assert counts(asked) == found
        found = probed(asked, "residual", dtype, residual_probe.part_of("quantize_backward", several, z, 1))
        assert found == {"_backward": 1}
        residual.quantize_backward(z, out[2], out[2], z, books, out[1], 1)
        assert counts(asked) == found
    found = probed(asked, "residual", dtype, residual_probe.part_of("residual_codes", True, z, 1))
    assert found == {"_prepare": 1, "_search": 1}
    residual.residual_codes(z, [codebook] * 2, 1)
    assert counts(asked) == found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolutions_are_vouched_for(asked, dtype, layout) -> None:
    from vqfast.ops.masked_conv import triton as conv

    def tensor(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)

    x, wide, sample, bias = tensor(4, D, 32, 32), tensor(4, 2 * D, 32, 32), tensor(4, 2 * D, 1, 1), None
    for size, out, given, activation in (
        (7, D, (bias, None, None), "none"),
        (1, 2 * D, (bias, None, wide), "relu"),
        (3, 2 * D, (bias, wide, x), "gate"),
        (3, 2 * D, (bias, sample, None), "gate"),
    ):
        weight = torch.zeros(out, D, size, size, dtype=dtype)
        taps, anchor, dilation = (size * size + 1) // 2, [size // 2] * 2, [2, 1]
        placed, geometry = (taps, *anchor, *dilation), (taps, anchor, dilation)
        part = conv_probe.part_of("masked_conv2d", x, given, weight, placed, activation)
        found = probed(asked, "masked_conv", dtype, part)
        assert found == {"_convolve": 1}
        conv.masked_conv2d(x, weight, *given, *geometry, activation)
        assert counts(asked) == found
        part = conv_probe.part_of("masked_conv2d_backward", x, (), weight, placed)
        found = probed(asked, "masked_conv", dtype, part)
        assert found == {"_convolve": 1, "_weight_gradient": 1, "_sum_pieces": 1}
        conv.masked_conv2d_backward(wide[:, :out].contiguous(memory_format=layout), x, weight, *geometry)
        assert counts(asked) == found
    for function, given in (("gate", (wide, sample)), ("gate_backward", (x, wide, None))):
        part = conv_probe.part_of(function, wide, given[-1:])
        found = probed(asked, "masked_conv", dtype, part)
        assert found == {"_gate": 1}
        getattr(conv, function)(*given)
        assert counts(asked) == found


def several(**options: Any) -> PixelCNN:
    return PixelCNN(30, 32, 1, num_quantizers=3, first_kernel_size=3, **options)


PRIORS: dict[str, Callable[[], Any]] = {
    "gated": lambda: PixelCNN(30, 32, 1, first_kernel_size=3),
    "attention": lambda: PixelSNAIL(30, 32, num_blocks=1, num_layers=1),
    "wavenet": lambda: WaveNet(30, 32, 2),
    "several codes": several,
    "strided": lambda: Programmed(TWO_STREAMS),
}


@pytest.mark.parametrize("images", [1, 6, 300, 3000])
@pytest.mark.parametrize("kind", PRIORS)
def test_samplers_are_vouched_for(asked, kind, images) -> None:
    prior = PRIORS[kind]()
    program, weights = prior.lower()
    weights = {name: weight.detach().float() for name, weight in weights.items()}
    grid = (1, 3) if prior.ndim == 1 else (2, 2)
    condition = torch.zeros(images, 2, *grid) if kind == "strided" else None
    known = torch.full((images, *grid, program.num_quantizers), -1)
    request = Request(
        program, weights, Draw(0, torch.arange(images)), known, None, condition, lambda codes: codes
    )
    found = probed(asked, "sampler", torch.float32, sampler_probe.part_of(request))
    assert found == {"sample": 2}
    sampler.run(request)
    assert counts(asked) == found
