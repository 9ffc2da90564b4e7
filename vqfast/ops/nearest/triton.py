"""Nearest code on a GPU: the launches of ``triton_kernels.py``."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import TRITON_DTYPES, architecture, on
from vqfast.ops.nearest.reference import divided
from vqfast.ops.nearest.triton_kernels import _centre, _pack, _recheck, _search
from vqfast.ops.nearest.tunings import RECHECK, SEARCH, Tuning, pick
from vqfast.ops.rows import ROW_DIMS, row_strides, walkable

SAMPLE = 256  # codes whose mean is the pivot
PACK_CODES = 64  # the codebook is small beside the rows: any size does here, and in ``_centre``


def wide(x: Tensor, codebook: Tensor) -> torch.dtype:
    """The dtype in which rows and codes are compared: float32 at the least."""
    return torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)


def channel_block(channels: int, most: int) -> int:
    """Channels a step: a power of two, 16 at the least, for the tensor cores."""
    return min(most, max(16, triton.next_power_of_2(channels)))


def search(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    quantized: Tensor | None = None,
    errors: Tensor | None = None,
) -> None:
    """Fills ``indices (G, N)`` for ``x (G, *rows, D)``, rows as ``row_strides`` takes, and ``(G, K, D)``.

    With ``quantized`` (as ``x``) and ``errors (N,)`` also codes and each row's squared error; G is 1 then.
    """
    heads, channels, codes = len(x), x.shape[-1], codebook.shape[1]
    rows = indices.shape[1]
    if indices.numel() == 0:
        return
    write = quantized is not None
    sizes, (strides, to) = row_strides(x[0], x[0] if quantized is None else quantized[0])
    dims = max(1, ROW_DIMS - next((i for i, size in enumerate(sizes) if size > 1), ROW_DIMS))
    arch = architecture(x.device)
    tuning, careful = pick(SEARCH, arch, channels), pick(RECHECK, arch, channels)
    block, careful_block = (channel_block(channels, each.channels) for each in (tuning, careful))

    padded_codes = triton.cdiv(codes, max(tuning.codes, careful.codes)) * max(tuning.codes, careful.codes)
    padded = triton.cdiv(channels, max(block, careful_block)) * max(block, careful_block)
    dtype = wide(x, codebook)
    pivot = x.new_empty(heads, padded, dtype=dtype)
    hi, lo = x.new_empty(2, heads, padded_codes, padded, dtype=torch.float16)
    half = x.new_empty(heads, padded_codes, dtype=torch.float32)
    # zeros in one go: stats (G, 4), the numbers of waiting rows (G)
    zeros = x.new_zeros(5 * heads, dtype=torch.int32)
    stats, waiting = zeros[: 4 * heads], zeros[4 * heads :]
    listed = x.new_empty(heads, rows, dtype=torch.int64)
    ceiling = x.new_empty(heads, rows, dtype=torch.float32)

    step = triton.cdiv(codes, SAMPLE)
    samples = triton.cdiv(codes, step)
    constants = {"WIDE": TRITON_DTYPES[dtype], "enable_fp_fusion": True}
    layout = {**constants, "DIMS": dims, "WRITE": write}
    found = (x, x.stride(0), *strides, x.stride(-1), rows, *sizes[1:])
    packed = (pivot, hi, lo, half, stats, indices, waiting, listed, ceiling)
    out = (x, 0, 0, 0, 0, pivot) if quantized is None else (quantized, *to, quantized.stride(-1), errors)
    with on(x):
        _centre[padded // 16, heads](
            codebook, *codebook.stride(), pivot, stats, channels, padded, step, samples,
            BK=128, BD=16, **constants,
        )  # fmt: skip
        _pack[padded_codes // PACK_CODES, heads](
            codebook, *codebook.stride(), pivot, stats, hi, lo, half, codes, padded_codes, channels, padded,
            BK=PACK_CODES, BD=16, enable_fp_fusion=True,
        )  # fmt: skip
        tiles = triton.cdiv(rows, tuning.rows)
        _search[(heads * tiles,)](
            *found, *packed, codebook, *codebook.stride()[1:], *out, tiles, channels, padded, padded_codes,
            **layout, **search_constants(tuning, channels), num_warps=tuning.warps, num_stages=tuning.stages,
        )  # fmt: skip
        most = max(1, min(triton.cdiv(rows, careful.rows), 1024 // heads))  # programs that share the list
        _recheck[most, heads](
            *found, *packed, codebook, *codebook.stride(), *out, channels, padded, codes, padded_codes,
            **layout, **recheck_constants(careful, channels),
            num_warps=careful.warps, num_stages=careful.stages,
        )  # fmt: skip


def search_constants(tuning: Tuning, channels: int) -> dict[str, int | bool]:
    """What ``_search`` is compiled for."""
    block = channel_block(channels, tuning.channels)
    return {
        "SPLITS": tuning.splits,
        "WHOLE": channels <= block,
        "BM": tuning.rows,
        "BN": tuning.codes,
        "BD": block,
        "BLOCKS": triton.next_power_of_2(triton.cdiv(channels, block)),
    }


def recheck_constants(tuning: Tuning, channels: int) -> dict[str, int]:
    """What ``_recheck`` is compiled for."""
    block = channel_block(channels, tuning.channels)
    blocks = triton.next_power_of_2(triton.cdiv(channels, block))
    return {"BM": tuning.rows, "BN": tuning.codes, "BD": block, "BLOCKS": blocks}


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``x (..., N, D)``, ``codebook (..., K, D)`` -> int64 ``(..., N)``; see ``reference.py``."""
    codebook = divided(codebook, lengths)
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    if codebook.shape[:-2].numel() == 1:
        shared = codebook.view(1, *codebook.shape[-2:])
        rows = x[None] if walkable(x) else x.contiguous()[None]
        search(rows, shared, indices.view(1, -1))
    else:
        heads = x.shape[:-2].numel()
        codebook = codebook.expand(*x.shape[:-2], *codebook.shape[-2:])
        codebook = codebook.reshape(heads, *codebook.shape[-2:])
        search(x.reshape(heads, *x.shape[-2:]), codebook, indices.view(heads, x.shape[-2]))
    return indices
