"""What a probe compiles, and what the call after it: Triton asks a hook before it would compile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

pytest.importorskip("triton")

from benchmarks import sweep
from tests.ops.uncompiled import asked_for_h100
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


def wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class Beside:
    """Launches the Triton backend, whose kernels don't run here, and gives what the reference gives.

    Of a convolution that is in float64: in bfloat16 PyTorch's own sums differ too much on some CPUs.
    """

    def __init__(self, op: str) -> None:
        self.triton, self.reference = module(op, "triton"), module(op, "reference")
        self.widened = wide if op == "masked_conv" else lambda tensor: tensor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def both(*arguments: Any) -> Any:
            getattr(self.triton, name)(*arguments)
            return getattr(self.reference, name)(*tree_map_only(Tensor, self.widened, arguments))

        return both


class Sampling:
    """The same of the sampler, for which the torch executor draws."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def draw(self) -> Tensor:
        sampler.Sampling(*self.arguments).draw()
        return plain.run(self.arguments[0])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """By kernel what Triton would compile for an H100."""
    with asked_for_h100(monkeypatch) as found:
        yield found


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


@pytest.mark.parametrize("called", ["search", "training step", "sample"])
def test_kernels_of_a_call_are_compiled_at_once(asked, monkeypatch, called) -> None:
    """Each of the first two waits for the other to begin; a third one follows."""
    from triton import knobs

    from vqfast.ops.nearest import triton as nearest
    from vqfast.ops.residual import triton as residual

    begun, beside, both = [], set(), threading.Barrier(2)

    def hook(*, key: str, **_: Any) -> bool:
        if key not in begun:
            begun.append(key)
            if threading.current_thread() is not threading.main_thread():
                beside.add(key)
            if len(begun) <= 2:
                both.wait(timeout=300)
        return True

    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", hook)
    monkeypatch.setattr(nearest, "_plans", {})
    x, codebook = torch.zeros(340, D), torch.zeros(70, D)
    if called == "search":
        nearest.nearest(x, codebook)
    elif called == "training step":
        residual.quantize_stage(x, codebook, 1, True)
    else:
        sampler.run(request_of("gated", 1))
    assert len(begun) == (3 if called == "training step" else 2)
    assert beside == set(begun) and not both.broken


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
        weight = tensor(out, D, size, size)
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


def test_a_convolution_is_vouched_for_anew_when_its_precision_is_set(asked) -> None:
    """Other kernels run then; what products are set to makes no difference."""
    from vqfast.ops.masked_conv import triton as conv

    x, weight, geometry = torch.zeros(4, D, 32, 32), torch.zeros(D, D, 3, 3), (5, [1, 1], [1, 1])

    def compiled() -> tuple[Any, set[str]]:
        part = conv_probe.part_of("masked_conv2d", x, (None,) * 3, weight, (5, 1, 1, 1, 1))
        found = probed(asked, "masked_conv", torch.float32, part)
        conv.masked_conv2d(x, weight, None, None, None, *geometry, "none")
        assert counts(asked) == found == {"_convolve": 1}
        return part, set(asked["_convolve"])

    before = torch.backends.cuda.matmul.allow_tf32
    found = {name: sweep.with_precision(name, compiled) for name in ("ieee", "tf32")}
    try:
        torch.backends.cuda.matmul.allow_tf32 = not before
        again = sweep.with_precision("ieee", compiled)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert again == found["ieee"]
    assert found["ieee"][0] != found["tf32"][0] and not found["ieee"][1] & found["tf32"][1]


def several(**options: Any) -> PixelCNN:
    return PixelCNN(30, 32, 1, num_quantizers=3, first_kernel_size=3, **options)


PRIORS: dict[str, Callable[[], Any]] = {
    "gated": lambda: PixelCNN(30, 32, 1, first_kernel_size=3),
    "attention": lambda: PixelSNAIL(30, 32, num_blocks=1, num_layers=1),
    "wavenet": lambda: WaveNet(30, 32, 2),
    "several codes": several,
    "strided": lambda: Programmed(TWO_STREAMS),
}


def request_of(kind: str, images: int) -> Request:
    prior = PRIORS[kind]()
    program, weights = prior.lower()
    weights = {name: weight.detach().float() for name, weight in weights.items()}
    grid = (1, 3) if prior.ndim == 1 else (2, 4)  # with few images two rows side by side
    condition = torch.zeros(images, 2, *grid) if kind == "strided" else None
    known = torch.full((images, *grid, program.num_quantizers), -1)
    draw = Draw(0, torch.arange(images))
    return Request(program, weights, draw, known, None, condition, lambda codes: codes)


@pytest.mark.parametrize("images", [1, 6, 300, 3000])
@pytest.mark.parametrize("kind", PRIORS)
def test_samplers_are_vouched_for(asked, kind, images) -> None:
    request = request_of(kind, images)
    found = probed(asked, "sampler", torch.float32, sampler_probe.part_of(request))
    assert found == {"sample": 2}
    sampler.run(request)
    assert counts(asked) == found
