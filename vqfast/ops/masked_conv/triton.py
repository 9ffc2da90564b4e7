"""Masked convolution on a GPU: an implicit matrix product over the visible taps alone.

Positions of all images are the rows of one product, output channels its columns; it sums over pairs of input
channel and tap. A tap is an offset into ``x``, which is read in the caller's memory, whatever its strides.
Bias, extra, activation and residual are the product's epilogue. The gradient to ``x`` is the same product of
``grad``, with offsets negated. The gradient to the weight is one product over positions for each tap, cut
into pieces. Their sums are added in a fixed order, so that every run gives the same.

FLOORS (H100: 3.0 TB/s, 800 TFLOP/s in bf16, 400 in TF32, 60 in float32), for (16, 128, 32, 32) to 128
channels. 3x3, mask B, 5 taps: 2.7 GFLOP, 3.4, 6.7 and 45 us; 4.2 MB read and written each in bf16, 3 us. 7x7,
mask A, 24 taps: 12.9 GFLOP, 16, 32 and 215 us. A block of 128 x 128 sums takes 2 x 164 KB from the L2 for 5
taps in bf16, 42 MB in all, 8 us at 5.5 TB/s: more than the product. Backward is two such products and 2 x 17
MB of pieces, 6 us from the L2. Nothing here has run on a GPU yet. Predicted for the 5 taps forward: 10 us in
bf16 channels last, 12 channels first (2-byte loads, one step ahead of the product), 18 in TF32, 70 in float32
without tensor cores; backward 2.5 times that."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import TRITON_DTYPES, Kept, architecture, on, plan_key, remember
from vqfast.ops.masked_conv import layout
from vqfast.ops.masked_conv.reference import embed, embed_backward  # noqa: F401  PyTorch's are fast enough
from vqfast.ops.masked_conv.triton_kernels import _convolve, _gate, _sum_pieces, _weight_gradient
from vqfast.ops.masked_conv.tunings import CONVOLVE, DOUBLE, HALF, IEEE, TF32, WEIGHT, Tuning, pick

MAX_POSITIONS = 1 << 30  # the kernels number them in int32
PIECES = 264  # about so many programs share the weight's gradient: two for each multiprocessor of an H100
GATE_BLOCK, SUM_BLOCK = (64, 32), (32, 128)  # blocks of kernels that memory limits: any size near these does


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums: float32 or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def arithmetic(x: Tensor) -> str:
    """The key of the tunings for ``x``; float32 has the precision of PyTorch's own convolution."""
    if x.dtype == torch.float32:
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch makes it as it starts
        tf32 = convolutions.fp32_precision == "tf32" and not torch.version.hip
        return TF32 if tf32 else IEEE
    return DOUBLE if x.dtype == torch.float64 else HALF


def constants(tuning: Tuning, x: Tensor, rows: int, columns: int, depth: int) -> dict[str, int | str]:
    """Compile-time constants of a product that reads ``x``; blocks no larger than needed, but 16 or more."""
    extents = {"BM": (tuning.rows, rows), "BN": (tuning.columns, columns), "BK": (tuning.depth, depth)}
    return {
        **{name: min(limit, max(16, triton.next_power_of_2(n))) for name, (limit, n) in extents.items()},
        "PRECISION": "tf32" if arithmetic(x) == TF32 else "ieee",
        # Asynchronous copies move at least 4 bytes, but a tap's shift leaves rows aligned to a single value:
        # rows of 16-bit values are loaded into registers, one step before their product.
        "AHEAD": int(x.element_size() == 2 and x.stride(1) != 1),
        "num_warps": tuning.warps,
        "num_stages": tuning.stages,
    }


def _strided(tensor: Tensor | None, grid: torch.Size) -> tuple[Tensor | None, int, int, int, int]:
    """A tensor, expanded to ``grid``, as kernels take it."""
    if tensor is None:
        return None, 0, 0, 0, 0
    batch, channel, row, column = tensor.expand(-1, -1, *grid).stride()
    return tensor, batch, channel, row, column


def _extents(x: Tensor) -> tuple[int, int, int]:
    """Positions, H and W.

    Raises:
        ValueError: there are more positions than int32 numbers allow.
    """
    batch, _, height, width = x.shape
    if batch * height * width > MAX_POSITIONS:
        raise ValueError(f"x has {batch * height * width} positions; want {MAX_POSITIONS} or fewer")
    return batch * height * width, height, width


def _offsets(weight: Tensor, anchor: list[int], dilation: list[int], sign: int = 1) -> tuple[int, ...]:
    """Kernel width; factors of a tap's row and column; the two numbers subtracted from the products."""
    steps = [sign * step for step in dilation]
    return weight.shape[3], *steps, anchor[0] * steps[0], anchor[1] * steps[1]


def _packed(weight: Tensor, taps: int, gate: bool = False) -> Tensor:
    """The visible taps, ``(taps, C_in, C_out)``, one of the channels dense; the gate's halves interleaved.

    A contiguous weight is copied: it has its taps side by side, and read in place each value would come in a
    memory sector of its own. No copy is kept, because nothing tells for sure that a weight is still the same:
    what is written through ``.data``, or by the replay of a CUDA graph, leaves its version as it was.
    """
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
    """Fills ``out`` and ``kept``; ``weight`` comes from ``_packed``."""
    if out.numel() == 0:
        return
    precision = arithmetic(x)
    tuning = pick(CONVOLVE, architecture(x.device), precision)
    key = plan_key((tuning, precision, offsets, activation), x, weight, bias, extra, residual, out, kept)
    plan = _plans.get(key)
    if plan is None:
        strides = tuple(_strided(tensor, x.shape[2:])[1:] for tensor in (x, extra, residual, out, kept))
        plan = remember(_plans, key, _plan(x, weight, offsets, activation, strides, tuning))
    of_x, of_extra, of_residual, of_out, of_kept = plan.strides
    with on(x):
        plan.kernel(
            plan.rows,
            ((x, *of_x), weight, *weight.stride(), bias, (extra, *of_extra), (residual, *of_residual),
             (out, *of_out), (kept, *of_kept), *plan.sizes),
            plan.columns,
        )  # fmt: skip


class _Plan(NamedTuple):
    """What a launch takes from shapes and strides."""

    rows: int  # of blocks
    columns: int
    strides: tuple[tuple[int, ...], ...]  # of the tensors on the grid
    sizes: tuple[Any, ...]
    kernel: Kept


_plans: dict[tuple[Any, ...], Any] = {}


def _plan(
    x: Tensor,
    weight: Tensor,
    offsets: tuple[int, ...],
    activation: str,
    strides: tuple[tuple[int, ...], ...],
    tuning: Tuning,
) -> _Plan:
    extents, (taps, inner, outer) = _extents(x), weight.shape
    blocks = constants(tuning, x, extents[0], outer, inner)
    activations = {"GATE": activation == "gate", "RELU": activation == "relu"}
    return _Plan(
        rows=triton.cdiv(extents[0], blocks["BM"]),
        columns=triton.cdiv(outer, blocks["BN"]),
        strides=strides,
        sizes=(extents, inner, outer, taps, offsets),
        kernel=Kept(_convolve, {"ACC": TRITON_DTYPES[accumulator(x)], **activations, **blocks}),
    )


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
    outer, inner = weight.shape[:2]
    grad_x = layout.empty(x, inner)
    packed = _packed(weight, taps).transpose(1, 2)
    _product(grad, packed, grad_x, _offsets(weight, anchor, dilation, sign=-1))

    grad_weight, grad_bias = weight.new_zeros(weight.shape), weight.new_zeros(outer)
    if x.numel() == 0:
        return grad_x, grad_weight, grad_bias
    precision, offsets = arithmetic(x), _offsets(weight, anchor, dilation)
    tuning = pick(WEIGHT, architecture(x.device), precision)
    key = plan_key((tuning, precision, offsets, taps), x, grad, grad_weight, grad_bias)
    plan = _plans.get(key)
    if plan is None:
        plan = remember(_plans, key, _weight_plan(x, grad, grad_weight, taps, offsets, tuning))
    (of_x, of_grad), (pieces, sums) = plan.multiply.strides, plan.partial
    partial = x.new_empty(pieces * sums, dtype=accumulator(x))
    with on(x):
        plan.multiply.kernel(
            plan.multiply.rows,
            ((x, *of_x), (grad, *of_grad), partial, *plan.multiply.sizes),
            plan.multiply.columns,
            pieces,
        )
        plan.add.kernel(
            plan.add.rows, (partial, pieces, grad_weight, *plan.add.strides[0], grad_bias, *plan.add.sizes)
        )
    return grad_x, grad_weight, grad_bias


class _WeightPlan(NamedTuple):
    """The two launches of a weight's gradient."""

    multiply: _Plan
    add: _Plan
    partial: tuple[int, int]  # pieces, and the sums of each


def _weight_plan(
    x: Tensor, grad: Tensor, grad_weight: Tensor, taps: int, offsets: tuple[int, ...], tuning: Tuning
) -> _WeightPlan:
    extents, (outer, inner) = _extents(x), grad_weight.shape[:2]
    blocks = constants(tuning, x, inner, outer, extents[0])
    tiles = triton.cdiv(inner, blocks["BM"]) * triton.cdiv(outer, blocks["BN"])
    piece = triton.cdiv(extents[0], max(1, PIECES // (tiles * max(1, taps))))
    piece = triton.cdiv(piece, blocks["BK"]) * blocks["BK"]
    sums = (taps * inner + 1) * outer
    strides = tuple(_strided(tensor, x.shape[2:])[1:] for tensor in (x, grad))
    sizes = (inner, outer, taps)
    multiply = Kept(_weight_gradient, blocks)
    add = Kept(_sum_pieces, {"BS": SUM_BLOCK[0], "BE": SUM_BLOCK[1]})
    return _WeightPlan(
        multiply=_Plan(tiles, taps + 1, strides, (piece, extents, *sizes, offsets), multiply),
        add=_Plan(triton.cdiv(sums, SUM_BLOCK[1]), 1, (grad_weight.flatten(2).stride(),), sizes, add),
        partial=(triton.cdiv(extents[0], piece), sums),
    )


def _run_gate(x: Tensor, extra: Tensor | None, grad: Tensor | None, out: Tensor) -> Tensor:
    if out.numel() == 0:
        return out
    key = plan_key((), x, extra, grad, out)
    plan = _plans.get(key)
    if plan is None:
        extents, channels, (rows, columns) = _extents(x), x.shape[1] // 2, GATE_BLOCK
        blocks = {"ACC": TRITON_DTYPES[accumulator(x)], "BM": rows, "BN": columns}
        plan = remember(_plans, key, _Plan(
            rows=triton.cdiv(extents[0], rows),
            columns=triton.cdiv(channels, columns),
            strides=tuple(_strided(tensor, x.shape[2:])[1:] for tensor in (x, extra, grad, out)),
            sizes=(extents, channels),
            kernel=Kept(_gate, blocks),
        ))  # fmt: skip
    of_x, of_extra, of_grad, of_out = plan.strides
    with on(x):
        plan.kernel(
            plan.rows,
            ((x, *of_x), (extra, *of_extra), (grad, *of_grad), (out, *of_out), *plan.sizes),
            plan.columns,
        )
    return out


def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """``(B, C, H, W)``, see ``op.py``."""
    return _run_gate(x, extra, None, layout.empty(x, x.shape[1] // 2))


def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """Gradient to ``x``."""
    return _run_gate(x, extra, grad, layout.empty(x, x.shape[1]))
