"""Nearest code on a GPU: the launches of ``triton_kernels.py``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import (
    TRITON_DTYPES,
    Kept,
    Launched,
    architecture,
    compile_together,
    on,
    remember,
)
from vqfast.ops.nearest.reference import accumulator, divided
from vqfast.ops.nearest.triton_kernels import _search
from vqfast.ops.nearest.triton_pack import _prepare
from vqfast.ops.nearest.tunings import SEARCH, Tuning, pick
from vqfast.ops.strides import VECTOR_DIMS, vector_strides, walkable

SAMPLES = 64  # about as many code vectors make the mean that is the pivot
PACKED = 64  # code vectors that a block of ``_prepare`` packs: any size does, for the codebook is small
CHUNK = 32  # listed vectors that a block looks at again at once
AGAIN, CHANNELS_AGAIN = 64, 32  # codes and channels that it takes at a time


def channel_block(channels: int, limit: int) -> int:
    """Channels that a kernel takes at a time: a power of two from 16 (for tensor cores) to ``limit``."""
    return min(limit, max(16, 1 << (channels - 1).bit_length()))


def search(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    quantized: Tensor | None = None,
    errors: Tensor | None = None,
    beside: Launched | None = None,
) -> None:
    """Fills the contiguous ``indices`` for walkable ``x (..., D)`` and ``codebook (K, D)``.

    For ``(G, K, D)`` the vectors are ``(G, ..., D)``, walkable in each group. With ``quantized``, shaped as
    ``x``, and ``errors (N,)`` it also writes the code vectors and each vector's squared distance, for one
    codebook. What is about to be launched ``beside`` is compiled together with the search.
    """
    if indices.numel() == 0:
        return
    tuning = pick(SEARCH, architecture(x.device), x.shape[-1])
    at, at_codes = x.data_ptr(), codebook.data_ptr()
    at_out = at if quantized is None else quantized.data_ptr()
    key = (
        x.device, x.dtype, x.shape, x.stride(), codebook.dtype, codebook.shape, codebook.stride(), tuning,
        at % 16, at_codes % 16, at_out % 16,
        None if quantized is None else (quantized.dtype, quantized.stride()),
    )  # fmt: skip
    known = plan = _plans.get(key)
    if plan is None:
        plan = remember(_plans, key, _plan(x, codebook, quantized, indices.numel(), tuning))
    memory = x.new_empty(plan.bytes, dtype=torch.uint8)
    vectors: Any  # a tensor, or where it begins, as are the next three
    codes: Any
    out: Any
    error: Any
    if plan.search.compiled is None:  # Triton wants to see tensors
        parts: tuple[Any, ...] = tuple(
            memory[begin:end].view(dtype)
            for (begin, end), dtype in zip(pairwise(plan.parts), plan.dtypes, strict=True)
        )
        vectors, codes, out = x, codebook, x if quantized is None else quantized
        error = parts[0] if errors is None else errors
    else:
        base = memory.data_ptr()
        parts = tuple([base + begin for begin in plan.parts[:-1]])
        vectors, codes, out = at, at_codes, at_out
        error = base if errors is None else errors
    packing = (codes, *plan.codes, *parts, *plan.packed)
    searching = (
        vectors, *plan.vectors, *parts, indices, plan.counters, codes, *plan.codes, out, *plan.written, error,
        *plan.sizes,
    )  # fmt: skip
    with on(x):
        if known is None:
            others = () if beside is None else (beside,)
            own = (plan.search, plan.tiles, searching), (plan.prepare, plan.blocks, packing)
            compile_together(x, *own, *others)
        plan.prepare(plan.blocks, packing)
        plan.search(plan.tiles, searching)


class _Plan(NamedTuple):
    """What the launches of a search take from shapes and strides: memory, grids, arguments, kernels."""

    bytes: int
    parts: tuple[int, ...]  # where pivot, hi, scratch and longs begin in the memory, and where the last ends
    dtypes: tuple[torch.dtype, ...]
    blocks: int
    tiles: int
    counters: int
    codes: tuple[int, ...]
    packed: tuple[int, ...]
    vectors: tuple[int, ...]
    written: tuple[int, ...]
    sizes: tuple[int, ...]
    prepare: Kept
    search: Kept


_plans: dict[tuple[Any, ...], _Plan] = {}


def _plan(x: Tensor, codebook: Tensor, quantized: Tensor | None, vectors: int, tuning: Tuning) -> _Plan:
    heads, channels, codes = codebook.shape[:-2].numel(), x.shape[-1], codebook.shape[-2]
    vectors //= heads
    group = x if codebook.ndim == 2 else x[0]
    extents, (strides, to) = vector_strides(group, group if quantized is None else quantized)
    dims = max(1, VECTOR_DIMS - next((i for i, size in enumerate(extents) if size > 1), VECTOR_DIMS))
    constants = search_constants(tuning, channels)
    padded_codes = _multiple(codes, max(tuning.codes, AGAIN, PACKED))
    padded = _multiple(channels, max(constants["BD"], constants["RD"]))
    blocks, tiles = padded_codes // PACKED, triton.cdiv(vectors, tuning.vectors)
    counters = 2 + triton.cdiv(vectors, CHUNK)  # of each codebook
    step = triton.cdiv(codes, SAMPLES)
    wide = accumulator(x, codebook)
    dtypes = (wide, torch.float16, torch.float32, torch.int64)
    sizes = (
        heads * blocks * padded,
        2 * heads * padded_codes * padded,
        heads * (padded_codes + 4 * blocks + 4 * vectors),
        heads * (vectors + counters),
    )
    parts = [0]
    for size, dtype in zip(sizes, dtypes, strict=True):
        parts.append(parts[-1] + _multiple(size * dtype.itemsize, 16))
    # What a kernel doesn't use is the same for all sizes, so that one kernel serves them.
    between = [stride if heads > 1 else 0 for stride in (x.stride(0), codebook.stride(0))]
    common = {"WIDE": TRITON_DTYPES[wide]}
    return _Plan(
        bytes=parts[-1],
        parts=tuple(parts),
        dtypes=dtypes,
        blocks=heads * blocks,
        tiles=heads * tiles,
        counters=counters,
        codes=(between[1], *codebook.stride()[-2:]),
        packed=(heads * vectors, heads * counters, codes, padded_codes, channels, padded, step,
                triton.cdiv(codes, step)),
        vectors=(between[0], *strides, x.stride(-1), vectors, *(extents[1:] if dims > 1 else (1, 1))),
        written=(0, 0, 0, 0) if quantized is None else (*to, quantized.stride(-1)),
        sizes=(tiles, channels, padded, codes, padded_codes),
        prepare=Kept(_prepare, {**common, **PREPARE_CONSTANTS, "num_warps": 4, "num_stages": 1}),
        search=Kept(_search, {**common, **constants, "DIMS": dims, "WRITE": quantized is not None,
                              "num_warps": tuning.warps, "num_stages": tuning.stages}),
    )  # fmt: skip


PREPARE_CONSTANTS = {"SAMPLES": SAMPLES, "BK": PACKED, "BD": 16}


def _multiple(count: int, size: int) -> int:
    """``count`` rounded up to a multiple of ``size``."""
    return -(-count // size) * size


def search_constants(tuning: Tuning, channels: int) -> dict[str, int | bool]:
    """The compile-time constants of ``_search``."""
    block = channel_block(channels, tuning.channels)
    return {
        "SPLITS": tuning.splits,
        "WHOLE": channels <= block,
        "PACKED": PACKED,
        "BM": tuning.vectors,
        "BN": tuning.codes,
        "BD": block,
        "RM": CHUNK,
        "RN": AGAIN,
        "RD": channel_block(channels, CHANNELS_AGAIN),
    }


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``x (..., N, D)``, ``codebook (..., K, D)`` -> int64 ``(..., N)``; see ``reference.py``."""
    codebook = divided(codebook, lengths)
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    if codebook.shape[:-2].numel() == 1:
        shared = codebook if codebook.ndim == 2 else codebook.view(codebook.shape[-2:])
        search(x if x.is_contiguous() or walkable(x) else x.contiguous(), shared, indices)
    else:
        heads = x.shape[:-2].numel()
        codebook = codebook.expand(*x.shape[:-2], *codebook.shape[-2:])
        codebook = codebook.reshape(heads, *codebook.shape[-2:])
        search(x.reshape(heads, *x.shape[-2:]), codebook, indices)
    return indices
