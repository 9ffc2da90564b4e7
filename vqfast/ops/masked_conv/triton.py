"""Masked convolution on a GPU: an implicit matrix product over the visible taps alone.

Positions of all images are the rows of one product, output channels its columns, and (input channel, tap)
what it sums over; a tap is an offset into ``x``, which is read in the caller's memory, whatever its strides.
Bias, extra, activation and residual are the product's epilogue. The gradient to ``x`` is the same product of
``grad`` with offsets negated. The gradient to the weight is, for each tap, a product over positions, cut into
pieces whose sums are added in a fixed order: the same in every run.

FLOORS (H100: 3.0 TB/s, 800 TFLOP/s in bf16, 400 in TF32, 60 in float32), for (16, 128, 32, 32) to 128
channels. 3x3, mask B, 5 taps: 2.7 GFLOP, 3.4, 6.7 and 45 us; 4.2 MB read and written each in bf16, 3 us. 7x7,
mask A, 24 taps: 12.9 GFLOP, 16, 32 and 215 us. A block of 128 x 128 sums takes 2 x 164 KB from the L2 for 5
taps in bf16, 42 MB in all, 8 us at 5.5 TB/s: more than the product. Backward is two such products and 2 x 17
MB of pieces, 6 us from the L2. Nothing here has run on a GPU yet. Predicted for the 5 taps forward: 10 us in
bf16 channels last, 12 channels first (2-byte loads, one step ahead of the product), 18 in TF32, 70 in float32
without tensor cores; backward 2.5 times that."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqfast.ops.launch import TRITON_DTYPES, architecture, on
from vqfast.ops.masked_conv import layout
from vqfast.ops.masked_conv.reference import embed, embed_backward  # noqa: F401  PyTorch's rows of a table do
from vqfast.ops.masked_conv.tunings import CONVOLVE, DOUBLE, HALF, IEEE, TF32, WEIGHT, Tuning, pick

MOST_POSITIONS = 1 << 30  # the kernels number them in int32
PIECES = 264  # about so many programs share the weight's gradient: two for each multiprocessor of an H100
GATE_BLOCK, SUM_BLOCK = (64, 32), (32, 128)  # bound by memory: anything of this size does

# In the kernels a tensor is (pointer, strides of B, C, H, W), the pointer None where there is none; ``place``
# is image, row and column of some positions, ``extents`` are ``_extents``, ``offsets`` are ``_offsets``.


@triton.jit
def _place(p, extents):
    _, H, W = extents
    return (p // (H * W)).to(tl.int64), (p // W % H).to(tl.int64), (p % W).to(tl.int64)


@triton.jit
def _pointers(tensor, place, channel):
    """(positions, channels)."""
    pointer, sb, sc, sh, sw = tensor
    image, row, column = place
    return pointer + (image * sb + row * sh + column * sw)[:, None] + (channel.to(tl.int64) * sc)[None, :]


@triton.jit
def _load(tensor, place, channel, inside, ACC: tl.constexpr):
    return tl.load(_pointers(tensor, place, channel), mask=inside, other=0).to(ACC)


@triton.jit
def _seen(x, p, end, extents, channel, channels, tap, offsets):
    """What ``tap`` sees of ``x`` from positions ``p < end``: zero outside the grid."""
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
    """``sums + bias + extra``, written to ``kept``."""
    if bias is not None:
        sums += tl.load(bias + channel, mask=channel < channels, other=0).to(sums.dtype)[None, :]
    if extra[0] is not None:
        sums += _load(extra, place, channel, inside, sums.dtype)
    if kept[0] is not None:
        tl.store(_pointers(kept, place, channel), sums, mask=inside)
    return sums


@triton.jit
def _tanh_and_sigmoid(a, b):
    """Of exponentials that can't overflow; tanh to 1e-7, absolute."""
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
        # taps are the inner loop: what they see overlaps, and is still in the cache
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

    Row (tap, k) belongs to the weight, the last one to the bias, as if that were the weight of ones.
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


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(x.dtype, torch.float32)


def arithmetic(x: Tensor) -> str:
    """Which line of the tunings ``x`` takes: float32 has the precision of PyTorch's own convolution."""
    if x.dtype == torch.float32:
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch makes it as it starts
        tf32 = convolutions.fp32_precision == "tf32" and not torch.version.hip
        return TF32 if tf32 else IEEE
    return DOUBLE if x.dtype == torch.float64 else HALF


def constants(tuning: Tuning, x: Tensor, rows: int, columns: int, depth: int) -> dict[str, int | str]:
    """What a product that reads ``x`` is compiled for: blocks no larger than asked for, 16 at the least."""
    extents = {"BM": (tuning.rows, rows), "BN": (tuning.columns, columns), "BK": (tuning.depth, depth)}
    return {
        **{name: min(most, max(16, triton.next_power_of_2(n))) for name, (most, n) in extents.items()},
        "PRECISION": "tf32" if arithmetic(x) == TF32 else "ieee",
        # Asynchronous copies move 4 bytes at least, and a row that a tap has shifted is aligned to one value:
        # 16-bit rows are read in registers, one step before their product.
        "AHEAD": int(x.element_size() == 2 and x.stride(1) != 1),
        "num_warps": tuning.warps,
        "num_stages": tuning.stages,
    }


def _strided(tensor: Tensor | None, grid: torch.Size) -> tuple[Tensor | None, int, int, int, int]:
    if tensor is None:
        return None, 0, 0, 0, 0
    batch, channel, row, column = tensor.expand(-1, -1, *grid).stride()
    return tensor, batch, channel, row, column


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
    """Kernel width; what a tap's row and column are multiplied by; what is then subtracted."""
    steps = [sign * step for step in dilation]
    return weight.shape[3], *steps, *(a * step for a, step in zip(anchor, steps, strict=True))


def _packed(weight: Tensor, taps: int, gate: bool = False) -> Tensor:
    """The visible taps, ``(taps, C_in, C_out)`` with either channel dense; the gate's halves interleaved."""
    visible = weight.flatten(2)[..., :taps].permute(2, 1, 0)
    if gate:
        return visible.unflatten(2, (2, -1)).transpose(2, 3).flatten(2)
    return visible if 1 in visible.stride()[1:] else visible.contiguous()


def _product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    offsets: tuple[int, ...],
    activation: str = "none",
    bias: Tensor | None = None,
    extra: Tensor | None = None,
    residual: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Fills ``out`` and ``kept``; ``weight`` as ``_packed``."""
    extents, grid, (taps, inner, outer) = _extents(x), x.shape[2:], weight.shape
    if out.numel() == 0:
        return
    tuning = pick(CONVOLVE, architecture(x.device), arithmetic(x))
    blocks = constants(tuning, x, extents[0], outer, inner)
    with on(x):
        _convolve[triton.cdiv(extents[0], blocks["BM"]), triton.cdiv(outer, blocks["BN"])](
            _strided(x, grid), weight, *weight.stride(), bias,
            *(_strided(tensor, grid) for tensor in (extra, residual, out, kept)),
            extents, inner, outer, taps, offsets, ACC=TRITON_DTYPES[accumulator(x)],
            GATE=activation == "gate", RELU=activation == "relu", **blocks,
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
    extents, grid, (outer, inner) = _extents(x), x.shape[2:], weight.shape[:2]
    grad_x = layout.empty(x, inner)
    packed = _packed(weight, taps).transpose(1, 2)
    _product(grad, packed, grad_x, _offsets(weight, anchor, dilation, sign=-1))

    grad_weight, grad_bias = weight.new_zeros(weight.shape), weight.new_zeros(outer)
    if x.numel() == 0:
        return grad_x, grad_weight, grad_bias
    tuning = pick(WEIGHT, architecture(x.device), arithmetic(x))
    blocks = constants(tuning, x, inner, outer, extents[0])
    tiles = triton.cdiv(inner, blocks["BM"]) * triton.cdiv(outer, blocks["BN"])
    piece = triton.cdiv(extents[0], max(1, PIECES // (tiles * max(1, taps))))
    piece = triton.cdiv(piece, blocks["BK"]) * blocks["BK"]
    pieces = triton.cdiv(extents[0], piece)
    partial = x.new_empty(pieces, taps * inner + 1, outer, dtype=accumulator(x))
    with on(x):
        _weight_gradient[tiles, taps + 1, pieces](
            _strided(x, grid), _strided(grad, grid), partial, piece, extents, inner, outer, taps,
            _offsets(weight, anchor, dilation), **blocks,
        )  # fmt: skip
        _sum_pieces[(triton.cdiv(partial[0].numel(), SUM_BLOCK[1]),)](
            partial, pieces, grad_weight, *grad_weight.flatten(2).stride(), grad_bias, inner, outer, taps,
            BS=SUM_BLOCK[0], BE=SUM_BLOCK[1],
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _run_gate(x: Tensor, extra: Tensor | None, grad: Tensor | None, out: Tensor) -> Tensor:
    extents, channels, (rows, columns) = _extents(x), x.shape[1] // 2, GATE_BLOCK
    if out.numel() > 0:
        with on(x):
            _gate[triton.cdiv(extents[0], rows), triton.cdiv(channels, columns)](
                *(_strided(tensor, x.shape[2:]) for tensor in (x, extra, grad, out)), extents, channels,
                ACC=TRITON_DTYPES[accumulator(x)], BM=rows, BN=columns,
            )  # fmt: skip
    return out


def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """``(B, C, H, W)``, see ``op.py``."""
    return _run_gate(x, extra, None, layout.empty(x, x.shape[1] // 2))


def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """Gradient to ``x``."""
    return _run_gate(x, extra, grad, layout.empty(x, x.shape[1]))
