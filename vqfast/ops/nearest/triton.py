"""Nearest code on a GPU: the launches of ``triton_kernels.py``."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import TRITON_DTYPES, architecture, on
from vqfast.ops.nearest.reference import accumulator, divided
from vqfast.ops.nearest.triton_kernels import _recheck, _search
from vqfast.ops.nearest.triton_pack import _centre, _pack
from vqfast.ops.nearest.tunings import RECHECK, SEARCH, Tuning, pick
from vqfast.ops.strides import VECTOR_DIMS, vector_strides, walkable

SAMPLE = 256  # about as many code vectors make the mean that is the pivot
PACK_CODES = 64  # a block of ``_pack``: any size does, for the codebook is small beside the vectors


def channel_block(channels: int, limit: int) -> int:
    """Channels that a kernel takes at a time: a power of two from 16 (for tensor cores) to ``limit``."""
    return min(limit, max(16, 1 << (channels - 1).bit_length()))


def search(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    quantized: Tensor | None = None,
    errors: Tensor | None = None,
) -> None:
    """Fills ``indices (G, N)`` for walkable ``x (G, ..., D)``, N vectors in each group, and ``(G, K, D)``.

    With ``quantized``, of the shape of ``x``, and ``errors (N,)`` it also writes the code vectors and each
    vector's squared distance; G is 1 then.
    """
    heads, channels, codes = len(x), x.shape[-1], codebook.shape[1]
    vectors = indices.shape[1]
    if indices.numel() == 0:
        return
    write = quantized is not None
    sizes, (strides, to) = vector_strides(x[0], x[0] if quantized is None else quantized[0])
    dims = max(1, VECTOR_DIMS - next((i for i, size in enumerate(sizes) if size > 1), VECTOR_DIMS))
    arch = architecture(x.device)
    tuning, careful = pick(SEARCH, arch, channels), pick(RECHECK, arch, channels)
    block, careful_block = (channel_block(channels, each.channels) for each in (tuning, careful))

    padded_codes = triton.cdiv(codes, max(tuning.codes, careful.codes)) * max(tuning.codes, careful.codes)
    padded = triton.cdiv(channels, max(block, careful_block)) * max(block, careful_block)
    dtype = accumulator(x, codebook)
    pivot = x.new_empty(heads, padded, dtype=dtype)
    hi, lo = x.new_empty(2, heads, padded_codes, padded, dtype=torch.float16)
    half = x.new_empty(heads, padded_codes, dtype=torch.float32)
    # zeroed at once: stats (G, 4), and how many vectors wait for the recheck (G,)
    zeros = x.new_zeros(5 * heads, dtype=torch.int32)
    stats, waiting = zeros[: 4 * heads], zeros[4 * heads :]
    listed = x.new_empty(heads, vectors, dtype=torch.int64)
    ceiling = x.new_empty(heads, vectors, dtype=torch.float32)

    step = triton.cdiv(codes, SAMPLE)
    samples = triton.cdiv(codes, step)
    constants = {"WIDE": TRITON_DTYPES[dtype], "enable_fp_fusion": True}
    layout = {**constants, "DIMS": dims, "WRITE": write}
    found = (x, x.stride(0), *strides, x.stride(-1), vectors, *sizes[1:])
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
        tiles = triton.cdiv(vectors, tuning.vectors)
        _search[(heads * tiles,)](
            *found, *packed, codebook, *codebook.stride()[1:], *out, tiles, channels, padded, padded_codes,
            **layout, **search_constants(tuning, channels), num_warps=tuning.warps, num_stages=tuning.stages,
        )  # fmt: skip
        programs = max(1, min(triton.cdiv(vectors, careful.vectors), 1024 // heads))  # they share the list
        _recheck[programs, heads](
            *found, *packed, codebook, *codebook.stride(), *out, channels, padded, codes, padded_codes,
            **layout, **recheck_constants(careful, channels),
            num_warps=careful.warps, num_stages=careful.stages,
        )  # fmt: skip


def search_constants(tuning: Tuning, channels: int) -> dict[str, int | bool]:
    """The compile-time constants of ``_search``."""
    block = channel_block(channels, tuning.channels)
    return {
        "SPLITS": tuning.splits,
        "WHOLE": channels <= block,
        "BM": tuning.vectors,
        "BN": tuning.codes,
        "BD": block,
        "BLOCKS": triton.next_power_of_2(triton.cdiv(channels, block)),
    }


def recheck_constants(tuning: Tuning, channels: int) -> dict[str, int]:
    """The compile-time constants of ``_recheck``."""
    block = channel_block(channels, tuning.channels)
    blocks = triton.next_power_of_2(triton.cdiv(channels, block))
    return {"BM": tuning.vectors, "BN": tuning.codes, "BD": block, "BLOCKS": blocks}


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``x (..., N, D)``, ``codebook (..., K, D)`` -> int64 ``(..., N)``; see ``reference.py``."""
    codebook = divided(codebook, lengths)
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    if codebook.shape[:-2].numel() == 1:
        shared = codebook.view(1, *codebook.shape[-2:])
        vectors = x[None] if walkable(x) else x.contiguous()[None]
        search(vectors, shared, indices.view(1, -1))
    else:
        heads = x.shape[:-2].numel()
        codebook = codebook.expand(*x.shape[:-2], *codebook.shape[-2:])
        codebook = codebook.reshape(heads, *codebook.shape[-2:])
        search(x.reshape(heads, *x.shape[-2:]), codebook, indices.view(heads, x.shape[-2]))
    return indices
