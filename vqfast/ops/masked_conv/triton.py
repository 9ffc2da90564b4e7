"""Masked convolution on a GPU: an implicit matrix product over the visible taps alone.

Positions of all images are the rows of one product, output channels its columns, and (input channel, tap)
what it sums over; a tap is an offset into ``x``, which is read in the caller's memory, whatever its strides.
Bias, extra, activation and residual are the product's epilogue. The gradient to ``x`` is the same product of
``grad`` with offsets negated. The gradient to the weight is, for each tap, a product over positions, cut into
pieces whose sums are added in a fixed order: the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqfast.ops.masked_conv import layout
from vqfast.ops.masked_conv.tunings import CONVOLVE, DOUBLE, HALF, IEEE, TF32, WEIGHT, Tuning, pick
from vqfast.ops.nearest.triton import TRITON_DTYPES, architecture, on

MOST_POSITIONS = 1 << 30  # the kernels number them in int32
PROGRAMS = 132  # into about so many the weight's gradient is cut: an H100's multiprocessors
GATE_BLOCK, REDUCE_BLOCK = (64, 64), (32, 64)  # bound by memory, anything of this size does


@triton.jit
def _unravel(p, H, W):
    """Image, row and column (int64) of raster positions."""
    return (p // (H * W)).to(tl.int64), (p // W % H).to(tl.int64), (p % W).to(tl.int64)


@triton.jit
def _pointers(tensor, sb, sc, sh, sw, image, row, column, channel):
    """(positions, channels) of a (B, C, H, W) tensor."""
    return tensor + (image * sb + row * sh + column * sw)[:, None] + (channel.to(tl.int64) * sc)[None, :]


@triton.jit
def _seen(x, xb, xc, xh, xw, p, positions, H, W, channel, C, tap, kw, step_y, step_x, top, left):
    """What ``tap`` sees of ``x`` from positions ``p``, in ``channel``: zero outside the grid."""
    image, row, column = _unravel(p, H, W)
    row += tap // kw * step_y - top
    column += tap % kw * step_x - left
    inside = (p < positions) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    at = _pointers(x, xb, xc, xh, xw, image, row, column, channel)
    return tl.load(at, mask=inside[:, None] & (channel < C)[None, :], other=0)


@triton.jit
def _add_and_keep(
    sums, bias, N, extra, eb, ec, eh, ew, kept, kb, kc, kh, kw, image, row, column, channel, inside
):  # fmt: skip
    """``sums + bias + extra``, written to ``kept``, for those of the three that aren't ``None``."""
    if bias is not None:
        sums += tl.load(bias + channel, mask=channel < N, other=0).to(sums.dtype)[None, :]
    if extra is not None:
        at = _pointers(extra, eb, ec, eh, ew, image, row, column, channel)
        sums += tl.load(at, mask=inside, other=0).to(sums.dtype)
    if kept is not None:
        tl.store(_pointers(kept, kb, kc, kh, kw, image, row, column, channel), sums, mask=inside)
    return sums


@triton.jit
def _tanh(a):
    return 2 * tl.sigmoid(2 * a) - 1  # off by 1e-7 at most; libdevice's isn't there in the interpreter


@triton.jit
def _convolve(
    x, xb, xc, xh, xw, weight, wt, wk, wn, bias, extra, eb, ec, eh, ew, residual, rb, rc, rh, rw,
    out, ob, oc, oh, ow, kept, kb, kc, kh, kw_, positions, H, W, K, N,
    taps, kw, step_y, step_x, top, left,
    ACC: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block of ``out``: BM positions, BN channels (of the sums: a gate's columns are a0 b0 a1 b1 ...)."""
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros([BM, BN], ACC)
    if AHEAD:
        k = tl.arange(0, BK)
        seen = _seen(x, xb, xc, xh, xw, p, positions, H, W, k, K, 0, kw, step_y, step_x, top, left)
    for step in range(taps * tl.cdiv(K, BK)):
        # taps are the inner loop: what they see overlaps, and is still in the cache
        tap = (step + AHEAD) % taps
        k = (step + AHEAD) // taps * BK + tl.arange(0, BK)
        fresh = _seen(x, xb, xc, xh, xw, p, positions, H, W, k, K, tap, kw, step_y, step_x, top, left)
        tap = step % taps
        k = step // taps * BK + tl.arange(0, BK)
        at = weight + tap.to(tl.int64) * wt + (k.to(tl.int64) * wk)[:, None] + (n.to(tl.int64) * wn)[None, :]
        w = tl.load(at, mask=(k < K)[:, None] & (n < N)[None, :], other=0)
        sums = tl.dot(seen if AHEAD else fresh, w, sums, input_precision=PRECISION, out_dtype=ACC)
        if AHEAD:
            seen = fresh

    image, row, column = _unravel(p, H, W)
    if GATE:
        a, b = tl.split(tl.reshape(sums, [BM, BN // 2, 2]))
        channel = tl.program_id(1) * (BN // 2) + tl.arange(0, BN // 2)
        inside = (p < positions)[:, None] & (channel < N // 2)[None, :]
        a = _add_and_keep(
            a, bias, N, extra, eb, ec, eh, ew, kept, kb, kc, kh, kw_, image, row, column, channel, inside
        )
        b = _add_and_keep(
            b, bias, N, extra, eb, ec, eh, ew, kept, kb, kc, kh, kw_, image, row, column, channel + N // 2, inside
        )
        value = _tanh(a) * tl.sigmoid(b)
    else:
        channel = n
        inside = (p < positions)[:, None] & (channel < N)[None, :]
        value = _add_and_keep(
            sums, bias, N, extra, eb, ec, eh, ew, kept, kb, kc, kh, kw_, image, row, column, channel, inside
        )
    if RELU:
        value = tl.where(value < 0, 0, value)  # a NaN stays
    if residual is not None:
        at = _pointers(residual, rb, rc, rh, rw, image, row, column, channel)
        value += tl.load(at, mask=inside, other=0).to(ACC)
    tl.store(_pointers(out, ob, oc, oh, ow, image, row, column, channel), value, mask=inside)


@triton.jit
def _weight_gradient(
    x, xb, xc, xh, xw, grad, gb, gc, gh, gw, partial, piece, positions, H, W, K, N,
    taps, kw, step_y, step_x, top, left,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``partial[s]``: the sums over the s-th ``piece`` of the positions, (taps * K + 1, N); see below.

    Row (tap, k) is the gradient to the weight; the last one that to the bias, which is a weight of ones.
    """
    ACC: tl.constexpr = partial.dtype.element_ty
    columns = tl.cdiv(N, BN)
    k = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    tap = tl.program_id(1)
    begin = tl.program_id(2) * piece
    end = tl.minimum(begin + piece, positions)
    partial += tl.program_id(2).to(tl.int64) * (taps * K + 1) * N
    if tap < taps:
        sums = tl.zeros([BM, BN], ACC)
        p = begin + tl.arange(0, BK)
        if AHEAD:
            seen = _seen(x, xb, xc, xh, xw, p, end, H, W, k, K, tap, kw, step_y, step_x, top, left)
        for start in range(begin, end, BK):
            p = start + AHEAD * BK + tl.arange(0, BK)
            fresh = _seen(x, xb, xc, xh, xw, p, end, H, W, k, K, tap, kw, step_y, step_x, top, left)
            p = start + tl.arange(0, BK)
            slope = _seen(grad, gb, gc, gh, gw, p, end, H, W, n, N, 0, 1, 0, 0, 0, 0)
            now = tl.trans(seen if AHEAD else fresh)
            sums = tl.dot(now, slope, sums, input_precision=PRECISION, out_dtype=ACC)
            if AHEAD:
                seen = fresh
        row = (tap * K + k).to(tl.int64) * N
        tl.store(partial + row[:, None] + n[None, :], sums, mask=(k < K)[:, None] & (n < N)[None, :])
    elif tl.program_id(0) < columns:
        total = tl.zeros([BN], ACC)
        for start in range(begin, end, BK):
            p = start + tl.arange(0, BK)
            slope = _seen(grad, gb, gc, gh, gw, p, end, H, W, n, N, 0, 1, 0, 0, 0, 0)
            total += tl.sum(slope.to(ACC), axis=0)
        tl.store(partial + (tap * K).to(tl.int64) * N + n, total, mask=n < N)


@triton.jit
def _reduce(
    partial, pieces, grad_weight, gn, gk, gt, grad_bias, K, N, taps, BS: tl.constexpr, BE: tl.constexpr
):
    """Adds the pieces up."""
    element = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    row, n = element // N, element % N
    total = tl.zeros([BE], partial.dtype.element_ty)
    for start in range(0, pieces, BS):
        piece = (start + tl.arange(0, BS))[:, None]
        at = partial + piece.to(tl.int64) * (taps * K + 1) * N + element[None, :]
        total += tl.sum(tl.load(at, mask=(piece < pieces) & (row <= taps * K)[None, :], other=0), axis=0)
    at = grad_weight + n * gn + row % K * gk + row // K * gt
    tl.store(at, total, mask=row < taps * K)
    tl.store(grad_bias + n, total, mask=row == taps * K)


@triton.jit
def _gate(
    x, xb, xc, xh, xw, extra, eb, ec, eh, ew, grad, gb, gc, gh, gw, out, ob, oc, oh, ow, positions, H, W, N,
    ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """N channels of the gate of 2 N; with ``grad``, the gradient to ``x`` instead."""
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    image, row, column = _unravel(p, H, W)
    inside = (p < positions)[:, None] & (n < N)[None, :]
    a = tl.load(_pointers(x, xb, xc, xh, xw, image, row, column, n), mask=inside, other=0).to(ACC)
    b = tl.load(_pointers(x, xb, xc, xh, xw, image, row, column, n + N), mask=inside, other=0).to(ACC)
    if extra is not None:
        at = _pointers(extra, eb, ec, eh, ew, image, row, column, n)
        a += tl.load(at, mask=inside, other=0).to(ACC)
        at = _pointers(extra, eb, ec, eh, ew, image, row, column, n + N)
        b += tl.load(at, mask=inside, other=0).to(ACC)
    tanh = _tanh(a)
    sigmoid = tl.sigmoid(b)
    at = _pointers(out, ob, oc, oh, ow, image, row, column, n)
    if grad is None:
        tl.store(at, tanh * sigmoid, mask=inside)
    else:
        slope = tl.load(_pointers(grad, gb, gc, gh, gw, image, row, column, n), mask=inside, other=0).to(ACC)
        tl.store(at, slope * sigmoid * (1 - tanh * tanh), mask=inside)
        at = _pointers(out, ob, oc, oh, ow, image, row, column, n + N)
        tl.store(at, slope * tanh * sigmoid * (1 - sigmoid), mask=inside)


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def arithmetic(x: Tensor) -> str:
    """Which line of the tunings ``x`` takes: float32 runs at the precision of PyTorch's own convolution."""
    if x.dtype == torch.float32:
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32" and not torch.version.hip
        return TF32 if tf32 else IEEE
    return DOUBLE if x.dtype == torch.float64 else HALF


def constants(tuning: Tuning, kind: str, rows: int, columns: int, depth: int) -> dict[str, int | str]:
    """What a product is compiled for: blocks no larger than its extents ask for, 16 at the least."""
    blocks = {
        name: min(most, max(16, triton.next_power_of_2(extent)))
        for name, most, extent in (
            ("BM", tuning.rows, rows),
            ("BN", tuning.columns, columns),
            ("BK", tuning.depth, depth),
        )
    }
    return {**blocks, "PRECISION": TF32 if kind == TF32 else IEEE}


def _walk(tensor: Tensor | None, grid: torch.Size) -> tuple[Tensor | None, int, int, int, int]:
    """The tensor and its strides; over the grid they are 0 where it has one value for all of it."""
    return (None, 0, 0, 0, 0) if tensor is None else (tensor, *tensor.expand(-1, -1, *grid).stride())


def _extents(x: Tensor) -> tuple[int, int, int]:
    """Positions, H and W.

    Raises:
        ValueError: too many positions.
    """
    batch, _, height, width = x.shape
    if batch * height * width > MOST_POSITIONS:
        raise ValueError(f"x has {batch * height * width} positions; want at most {MOST_POSITIONS}")
    return batch * height * width, height, width


def _offsets(weight: Tensor, anchor: list[int], dilation: list[int], sign: int = 1) -> tuple[int, ...]:
    """Kernel width, and what turns a tap's row and column into an offset: a factor and a subtrahend each."""
    steps = [sign * step for step in dilation]
    return weight.shape[3], *steps, *(a * step for a, step in zip(anchor, steps, strict=True))


def _packed(weight: Tensor, taps: int, gate: bool = False) -> Tensor:
    """The visible taps, ``(taps, C_in, C_out)`` with either channel dense; the gate's halves interleaved."""
    visible = weight.flatten(2)[..., :taps].permute(2, 1, 0)
    if gate:
        return visible.unflatten(2, (2, -1)).transpose(2, 3).flatten(2)
    return visible if 1 in visible.stride()[1:] else visible.contiguous()


def _product(
    x: Tensor, weight: Tensor, out: Tensor, offsets: tuple[int, ...], activation: str = "none",
    bias: Tensor | None = None, extra: Tensor | None = None, residual: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:  # fmt: skip
    """Fills ``out`` and ``kept``; ``weight (taps, K, N)``."""
    extents, (_, inner, outer) = _extents(x), weight.shape
    if out.numel() == 0:
        return
    kind, grid = arithmetic(x), x.shape[2:]
    tuning = pick(CONVOLVE, architecture(x.device), kind)
    blocks = constants(tuning, kind, extents[0], outer, inner)
    with on(x):
        _convolve[triton.cdiv(extents[0], blocks["BM"]), triton.cdiv(outer, blocks["BN"])](
            *_walk(x, grid), weight, *weight.stride(), bias, *_walk(extra, grid), *_walk(residual, grid),
            *_walk(out, grid), *_walk(kept, grid), *extents, inner, outer, len(weight), *offsets,
            ACC=TRITON_DTYPES[accumulator(x)], GATE=activation == "gate", RELU=activation == "relu",
            **blocks, num_warps=tuning.warps, num_stages=tuning.stages,
        )  # fmt: skip


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
    """``(out, kept)``, see ``op.py``."""
    out = layout.empty(x, layout.out_channels(weight, activation))
    kept = layout.empty(x, len(weight)) if layout.keeps_sums(activation, residual) else None
    packed = _packed(weight, taps, activation == "gate")
    offsets = _offsets(weight, anchor, dilation)
    _product(x, packed, out, offsets, activation, bias, extra, residual, kept)
    return out, x.new_empty(0) if kept is None else kept


def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` (zero at hidden taps) and the bias; see ``reference.py``."""
    extents, grid = _extents(x), x.shape[2:]
    positions = extents[0]
    grad_x = layout.empty(x, x.shape[1])
    packed = _packed(weight, taps).transpose(1, 2)
    _product(grad, packed, grad_x, _offsets(weight, anchor, dilation, -1))

    outer, inner = weight.shape[:2]
    grad_weight, grad_bias = weight.new_zeros(weight.shape), weight.new_zeros(outer)
    if positions == 0:
        return grad_x, grad_weight, grad_bias
    kind = arithmetic(x)
    tuning = pick(WEIGHT, architecture(x.device), kind)
    blocks = constants(tuning, kind, inner, outer, positions)
    tiles = triton.cdiv(inner, blocks["BM"]) * triton.cdiv(outer, blocks["BN"])
    piece = triton.cdiv(positions, max(1, PROGRAMS // (tiles * max(1, taps))))
    piece = triton.cdiv(piece, blocks["BK"]) * blocks["BK"]
    pieces = triton.cdiv(positions, piece)
    partial = x.new_empty(pieces, taps * inner + 1, outer, dtype=accumulator(x))
    with on(x):
        _weight_gradient[tiles, taps + 1, pieces](
            *_walk(x, grid), *_walk(grad, grid), partial, piece, *extents, inner, outer, taps,
            *_offsets(weight, anchor, dilation),
            **blocks, num_warps=tuning.warps, num_stages=tuning.stages,
        )  # fmt: skip
        _reduce[(triton.cdiv(partial[0].numel(), REDUCE_BLOCK[1]),)](
            partial, pieces, grad_weight, *grad_weight.flatten(2).stride(), grad_bias, inner, outer, taps,
            BS=REDUCE_BLOCK[0], BE=REDUCE_BLOCK[1],
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _run_gate(x: Tensor, extra: Tensor | None, grad: Tensor | None, out: Tensor) -> Tensor:
    extents, grid, channels = _extents(x), x.shape[2:], x.shape[1] // 2
    if out.numel() == 0:
        return out
    (rows, columns) = GATE_BLOCK
    with on(x):
        _gate[triton.cdiv(extents[0], rows), triton.cdiv(channels, columns)](
            *_walk(x, grid), *_walk(extra, grid), *_walk(grad, grid), *_walk(out, grid), *extents, channels,
            ACC=TRITON_DTYPES[accumulator(x)], BM=rows, BN=columns,
        )  # fmt: skip
    return out


def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """``(B, C, H, W)``, see ``op.py``."""
    return _run_gate(x, extra, None, layout.empty(x, x.shape[1] // 2))


def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """Gradient to ``x``."""
    return _run_gate(x, extra, grad, layout.empty(x, x.shape[1]))
