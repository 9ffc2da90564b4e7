"""The kernels of ``triton.py``.

A tensor is a tuple (pointer, strides of B, C, H, W), with the pointer None where there is no tensor.
``place`` is image, row and column of a block of positions. ``extents`` and ``offsets`` are those of
``triton.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(p, extents):
    """Image, row and column of positions."""
    _, H, W = extents
    return (p // (H * W)).to(tl.int64), (p // W % H).to(tl.int64), (p % W).to(tl.int64)


@triton.jit
def _pointers(tensor, place, channel):
    """Addresses ``(positions, channels)``."""
    pointer, sb, sc, sh, sw = tensor
    image, row, column = place
    return pointer + (image * sb + row * sh + column * sw)[:, None] + (channel.to(tl.int64) * sc)[None, :]


@triton.jit
def _load(tensor, place, channel, inside, ACC: tl.constexpr):
    """Values ``(positions, channels)`` as ``ACC``, zero where not ``inside``."""
    return tl.load(_pointers(tensor, place, channel), mask=inside, other=0).to(ACC)


@triton.jit
def _seen(x, p, end, extents, channel, channels, tap, offsets):
    """The values of ``x`` that ``tap`` reads for positions ``p < end``: zero outside the grid."""
    _, H, W = extents
    width, down, right, top, left = offsets
    image, row, column = _place(p, extents)
    row += tap // width * down - top
    column += tap % width * right - left
    inside = (p < end) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    at = _pointers(x, (image, row, column), channel)
    return tl.load(at, mask=inside[:, None] & (channel < channels)[None, :], other=0)


@triton.jit
def _complete(sums, bias, extra, kept, place, channel, channels, inside):
    """``sums + bias + extra``, which ``kept`` gets too."""
    if bias is not None:
        sums += tl.load(bias + channel, mask=channel < channels, other=0).to(sums.dtype)[None, :]
    if extra[0] is not None:
        sums += _load(extra, place, channel, inside, sums.dtype)
    if kept[0] is not None:
        tl.store(_pointers(kept, place, channel), sums, mask=inside)
    return sums


@triton.jit
def _tanh_and_sigmoid(a, b):
    """``tanh(a)`` and ``sigmoid(b)``, of exponentials that can't overflow; tanh to 1e-7, absolute."""
    e = tl.exp(-2 * tl.abs(a))
    tanh = (1 - e) / (1 + e)
    e = tl.exp(-tl.abs(b))
    return tl.where(a < 0, -tanh, tanh), tl.where(b < 0, e, 1) / (1 + e)


@triton.jit
def _convolve(
    x, weight, wt, wk, wn, bias, extra, residual, out, kept, extents, K, N, taps, offsets,
    ACC: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block of ``out``: BM positions, BN channels (of the sums; the gate's come as a0 b0 a1 b1 ...)."""
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    end = extents[0]
    sums = tl.zeros([BM, BN], ACC)
    if AHEAD:
        seen = _seen(x, p, end, extents, tl.arange(0, BK), K, 0, offsets)
    for step in range(taps * tl.cdiv(K, BK)):
        # taps are the inner loop: the values that they read overlap and are still in the cache
        k = (step + AHEAD) // taps * BK + tl.arange(0, BK)
        fresh = _seen(x, p, end, extents, k, K, (step + AHEAD) % taps, offsets)
        k = (step // taps * BK + tl.arange(0, BK)).to(tl.int64)
        at = weight + (step % taps).to(tl.int64) * wt + (k * wk)[:, None] + (n.to(tl.int64) * wn)[None, :]
        w = tl.load(at, mask=(k < K)[:, None] & (n < N)[None, :], other=0)
        sums = tl.dot(seen if AHEAD else fresh, w, sums, input_precision=PRECISION, out_dtype=ACC)
        if AHEAD:
            seen = fresh

    place = _place(p, extents)
    if GATE:
        a, b = tl.split(tl.reshape(sums, [BM, BN // 2, 2]))
        half = N // 2
        channel = tl.program_id(1) * (BN // 2) + tl.arange(0, BN // 2)
        inside = (p < end)[:, None] & (channel < half)[None, :]
        a = _complete(a, bias, extra, kept, place, channel, N, inside)
        b = _complete(b, bias, extra, kept, place, channel + half, N, inside)
        tanh, sigmoid = _tanh_and_sigmoid(a, b)
        value = tanh * sigmoid
    else:
        channel = n
        inside = (p < end)[:, None] & (channel < N)[None, :]
        value = _complete(sums, bias, extra, kept, place, channel, N, inside)
    if RELU:
        value = tl.where(value < 0, 0, value)  # a NaN stays
    if residual[0] is not None:
        value += _load(residual, place, channel, inside, ACC)
    tl.store(_pointers(out, place, channel), value, mask=inside)


@triton.jit
def _weight_gradient(
    x, grad, partial, piece, extents, K, N, taps, offsets,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``partial[s]`` (taps * K + 1, N): sums over the s-th ``piece`` of the positions.

    Row (tap, k) belongs to the weight, the last row to the bias, as if it were the weight of an input of
    ones.
    """
    ACC: tl.constexpr = partial.dtype.element_ty
    columns = tl.cdiv(N, BN)
    k = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    tap = tl.program_id(1)
    begin = tl.program_id(2) * piece
    end = tl.minimum(begin + piece, extents[0])
    row = tl.program_id(2).to(tl.int64) * (taps * K + 1) + tap * K
    if tap < taps:
        sums = tl.zeros([BM, BN], ACC)
        if AHEAD:
            seen = _seen(x, begin + tl.arange(0, BK), end, extents, k, K, tap, offsets)
        for start in range(begin, end, BK):
            p = start + tl.arange(0, BK)
            fresh = _seen(x, p + AHEAD * BK, end, extents, k, K, tap, offsets)
            slope = _seen(grad, p, end, extents, n, N, 0, (1, 0, 0, 0, 0))
            now = tl.trans(seen if AHEAD else fresh)
            sums = tl.dot(now, slope, sums, input_precision=PRECISION, out_dtype=ACC)
            if AHEAD:
                seen = fresh
        inside = (k < K)[:, None] & (n < N)[None, :]
        tl.store(partial + ((row + k) * N)[:, None] + n[None, :], sums, mask=inside)
    elif tl.program_id(0) < columns:
        total = tl.zeros([BN], ACC)
        for start in range(begin, end, BK):
            p = start + tl.arange(0, BK)
            slope = _seen(grad, p, end, extents, n, N, 0, (1, 0, 0, 0, 0))
            total += tl.sum(slope.to(ACC), axis=0)
        tl.store(partial + row * N + n, total, mask=n < N)


@triton.jit
def _sum_pieces(
    partial, pieces, grad_weight, gn, gk, gt, grad_bias, K, N, taps, BS: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    """Sums the pieces in their order, into the weight's and the bias's gradient."""
    element = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    row, n = element // N, element % N
    total = tl.zeros([BE], partial.dtype.element_ty)
    for start in range(0, pieces, BS):
        piece = (start + tl.arange(0, BS))[:, None]
        at = partial + piece.to(tl.int64) * (taps * K + 1) * N + element[None, :]
        total += tl.sum(tl.load(at, mask=(piece < pieces) & (row <= taps * K)[None, :], other=0), axis=0)
    tl.store(grad_weight + n * gn + row % K * gk + row // K * gt, total, mask=row < taps * K)
    tl.store(grad_bias + n, total, mask=row == taps * K)


@triton.jit
def _gate(
    x, extra, grad, out, extents, N, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """The gate of 2 N channels; with ``grad``, its gradient to ``x``."""
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    place = _place(p, extents)
    inside = (p < extents[0])[:, None] & (n < N)[None, :]
    a = _load(x, place, n, inside, ACC)
    b = _load(x, place, n + N, inside, ACC)
    if extra[0] is not None:
        a += _load(extra, place, n, inside, ACC)
        b += _load(extra, place, n + N, inside, ACC)
    tanh, sigmoid = _tanh_and_sigmoid(a, b)
    if grad[0] is None:
        tl.store(_pointers(out, place, n), tanh * sigmoid, mask=inside)
    else:
        slope = _load(grad, place, n, inside, ACC)
        tl.store(_pointers(out, place, n), slope * sigmoid * (1 - tanh * tanh), mask=inside)
        tl.store(_pointers(out, place, n + N), slope * tanh * sigmoid * (1 - sigmoid), mask=inside)
