"""Masked convolution on CPUs: ``csrc/masked_conv/``.

Of a 1x1 kernel nothing is masked and no neighbours share their inputs: PyTorch's own convolution is near its
floor. With 128 channels and 16 x 32 x 32 positions it takes of our time, forward and with the backward pass,
on a core with AVX2 0.67 and 0.86 (contiguous), 0.84 and 0.93 (channels last); on two cores with AVX-512
1.24 and 1.26 (contiguous), 0.97 and 1.19 on AMD and 0.85 and 0.93 on Intel (channels last). So it is called,
but with AVX-512 only for what is channels last, and not for the weight's gradient, which takes 1.07. With the
tiles of Intel's CPUs ours takes 0.9 of the time of 256 channels, channels last, and as long of 128. After a
large product the caches hold none of the code that an op's call runs, which then takes 0.2 ms, a twentieth
of this convolution: where no gradient of ours follows, no op is called (``is_plain``). Without AVX-512
PyTorch takes 5 to 46 times as long for bfloat16 and float16, so that these are ours there. With tiles PyTorch
multiplies 16 times as many bfloat16 numbers as our kernels, which do float32 alone by tiles: there it does
large convolutions of bfloat16, hidden taps too. A training step of a gated prior with
autocast takes 521 ms then, where it took 1125, and a plain one in PyTorch 549.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from vqfast.ops import build, library
from vqfast.ops.masked_conv import reference
from vqfast.ops.masked_conv.layout import embedded, empty, memory_format

_LARGE = 2**21  # numbers of the input times output channels: PyTorch has more to do before it begins
_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"  # a graph of torch.compile can't ask for it
_TILES = os.environ.get("VQFAST_ISA", "amx") == "amx" and "amx" in build.own_instruction_sets()


@functools.cache
def _number(activation: str) -> int:
    """The number of an activation in the native library."""
    return library.contract().number("Activation", activation)


def _alike(x: Tensor, *others: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    """``x`` and the others, all contiguous or all channels last, as ``x`` is; copied where they aren't."""
    layout = memory_format(x)
    rest = [None if t is None else t.contiguous(memory_format=layout) for t in others]
    return x.contiguous(memory_format=layout), rest


def _dense(t: Tensor) -> Tensor:
    """``t``, copied unless it is contiguous or channels last."""
    return t if t.is_contiguous(memory_format=torch.channels_last) else t.contiguous()


def _offsets(
    x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[tuple[int, ...], ...]:
    """``taps, dy, dx``: the taps that reach the grid from some position, and their offsets from it."""
    return _seen(*x.shape[2:], weight.shape[3], taps, *anchor, *dilation)


@functools.lru_cache
def _seen(
    height: int, width: int, kw: int, taps: int, ay: int, ax: int, step_y: int, step_x: int
) -> tuple[tuple[int, ...], ...]:
    found = [(t, (t // kw - ay) * step_y, (t % kw - ax) * step_x) for t in range(taps)]
    seen = [(t, dy, dx) for t, dy, dx in found if abs(dy) < height and abs(dx) < width]
    return tuple(tuple(each[i] for each in seen) for i in range(3))


def _pointwise(x: Tensor, weight: Tensor, taps: int, anchor: list[int]) -> bool:
    """Whether PyTorch's convolution is called."""
    if taps != 1 or weight.shape[2:] != (1, 1) or list(anchor) != [0, 0] or x.numel() * len(weight) < _LARGE:
        return False
    if _WIDE:
        pieces = _TILES and x.dtype == torch.float32 and weight.numel() >= 2**15
        return memory_format(x) == torch.channels_last and not pieces
    return x.dtype in (torch.float32, torch.float64)


def _by_tiles(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's whole convolution, by the CPU's tiles, takes less than ours of the visible taps."""
    large = x.numel() * len(weight) >= _LARGE
    return large and x.dtype == torch.bfloat16 and library.instruction_set() == "amx"


def is_plain(x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: tuple[int, int]) -> bool:
    """Whether a convolution on its own is PyTorch's, and its gradients are: then calling that is all."""
    if x.device.type != "cpu" or weight.shape[2:] != (1, 1) or "VQFAST_BACKEND" in os.environ:
        return False
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    return not (learns and _WIDE) and _pointwise(x, weight, taps, list(anchor))


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extra: Tensor | None,
    residual: Tensor | None,
    taps: int,
    anchor: list[int],
    dilation: list[int],
    activation: str,
) -> tuple[Tensor, Tensor]:
    """As ``reference.masked_conv2d``; sums of narrower types are float32."""
    if _by_tiles(x, weight):
        return reference.masked_conv2d(x, weight, bias, extra, residual, taps, anchor, dilation, activation)
    x, (extra, residual) = _alike(x, extra, residual)
    if activation == "none" and extra is None and residual is None and _pointwise(x, weight, taps, anchor):
        out = torch.conv2d(x, weight, bias).contiguous(memory_format=memory_format(x))
        return out, x.new_empty(0)
    found: tuple[Tensor, Tensor] = torch.ops.vqfast_native.masked_conv2d(
        x,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        extra,
        residual,
        taps,
        anchor,
        dilation,
        _number(activation),
    )
    return found


def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.masked_conv2d_backward``. ``x``'s gradient is a convolution with opposite offsets."""
    if _by_tiles(x, weight):
        return reference.masked_conv2d_backward(grad, x, weight, taps, anchor, dilation)
    x, grad = _dense(x), _dense(grad)  # each may keep its layout: losses use contiguous, layers channels last
    pointwise, layout = _pointwise(x, weight, taps, anchor), memory_format(x)
    if pointwise and not _WIDE:
        one, none = [1, 1], [0, 0]
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], one, none, one, False, none, 1, [True, True, True]
        )
        return grad_x.contiguous(memory_format=layout), grad_weight.contiguous(), grad_bias
    tap, dy, dx = _offsets(x, weight, taps, anchor, dilation)
    grad_weight, grad_bias = weight.new_zeros(weight.shape), weight.new_empty(len(weight))
    turned = weight.contiguous().transpose(0, 1)
    native = torch.ops.vqfast_native
    if pointwise:
        grad_x = torch.conv2d(grad, turned).contiguous(memory_format=layout)
    else:
        grad_x = empty(x, x.shape[1])
        back = [-d for d in dy], [-d for d in dx]
        native.masked_conv(grad, turned, None, None, None, grad_x, None, tap, *back, _number("none"))
    native.masked_conv_weight_gradient(grad, x, grad_weight, grad_bias, tap, dy, dx)
    return grad_x, grad_weight, grad_bias


def embed(
    codes: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """As ``reference.embed``."""
    codes, out = codes.contiguous().unsqueeze(1), embedded(codes, weight)
    bias = None if bias is None else bias.contiguous()
    where = _offsets(codes, weight, taps, anchor, dilation)
    none = _number("none")
    torch.ops.vqfast_native.masked_conv(codes, weight.contiguous(), bias, None, None, out, None, *where, none)
    return out


def embed_backward(
    grad: Tensor, codes: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    """As ``reference.embed_backward``."""
    codes, grad = codes.contiguous().unsqueeze(1), grad.contiguous(memory_format=torch.channels_last)
    grad_weight, grad_bias = weight.new_zeros(weight.shape), weight.new_empty(len(weight))
    where = _offsets(codes, weight, taps, anchor, dilation)
    torch.ops.vqfast_native.masked_conv_weight_gradient(grad, codes, grad_weight, grad_bias, *where)
    return grad_weight, grad_bias


def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """As ``reference.gate``."""
    x, (extra,) = _alike(x, extra)
    out = empty(x, x.shape[1] // 2)
    torch.ops.vqfast_native.gate(x, extra, None, out)
    return out


def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """As ``reference.gate_backward``."""
    x, (extra, given) = _alike(x, extra, grad)
    grad_x = empty(x, x.shape[1])
    torch.ops.vqfast_native.gate(x, extra, given, grad_x)
    return grad_x
