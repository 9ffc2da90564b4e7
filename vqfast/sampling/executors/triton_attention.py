"""The attention of the Triton executor: one sample and head at a time, over blocks of earlier positions.

Keys and values stay in the caches of their steps, which keep the whole grid.
"""

# mypy: ignore-errors
# Triton compiles these functions; their arguments have no Python types.

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.sampling.executors.triton_cells import cells, divided
from vqfast.sampling.executors.triton_meeting import wait
from vqfast.sampling.executors.triton_plan import PLACE, UNIT

_UNIT, _PLACE = tl.constexpr(UNIT), tl.constexpr(len(PLACE))


@triton.jit
def attend(
    job, places, values, counter, arrivals, first, member, members, y, x, width, batch, ACC: tl.constexpr,
    IMAGES: tl.constexpr, HEAD: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Computes a member's part of the attention at position ``(y, x)`` of a grid of ``width`` columns.

    The group has ``IMAGES`` images from ``first`` on. Channels of a head are padded to ``HEAD``. The softmax
    is that of the blocks so far: their largest score, the sum of exponentials, and that of weighted values.
    The cells of the first block's keys and values are known before the group meets, as numbers of positions:
    their caches keep the whole grid, and have the same columns.
    """
    BLOCK: tl.constexpr = max(16, 2048 // HEAD)
    # fields in the order of JOB
    out_channels = tl.load(job + 10).to(tl.int32)
    heads = tl.load(job + 14).to(tl.int32)
    channels = tl.load(job + 15).to(tl.int32)
    scale = tl.load(job + 16).to(tl.float64, bitcast=True).to(ACC)
    count = y * width + x + tl.load(job + 17).to(tl.int32)
    reciprocal = tl.load(job + 18)
    place = places + tl.load(job) * _PLACE  # of the result, the query, the key and the value
    c, block = tl.arange(0, HEAD), tl.arange(0, BLOCK)
    key, value = place + 2 * _PLACE, place + 3 * _PLACE
    key_size, value_size = tl.load(key + 1), tl.load(value + 1)  # of an image's values
    beside, margin = tl.load(key + 3).to(tl.int32) - width, tl.load(key + 5).to(tl.int32)
    for item in range(member, IMAGES * heads, members):
        image, head = first + item // heads, item % heads
        here = cells(place + _PLACE, y, x, image, batch) * _UNIT + head * channels
        to = cells(place, y, x, image, batch) * _UNIT + head * out_channels
        key_of = tl.load(key) + image * key_size
        value_of = tl.load(value) + image * value_size
        row, _ = divided(block, width, reciprocal)
        cell = block + row * beside + margin  # of each position
        if item == member:
            wait(counter, arrivals, SHARED)
        query = tl.load(values + here + c, mask=c < channels, other=0).to(ACC)
        largest = tl.full([1], -float("inf"), ACC)
        total = tl.zeros([1], ACC)
        sums = tl.zeros([HEAD], ACC)
        for begin in range(0, count, BLOCK):
            n = begin + block
            if begin > 0:
                row, _ = divided(n, width, reciprocal)
                cell = n + row * beside + margin
            earlier = (n < count)[:, None]
            at = (key_of + cell.to(tl.int64) * (key_size * batch)) * _UNIT + head * channels
            inside = earlier & (c < channels)[None, :]
            k = tl.load(values + at[:, None] + c[None, :], mask=inside, other=0).to(ACC)
            scores = tl.where(n < count, tl.sum(k * query[None, :], axis=1) * scale, -float("inf"))
            at = (value_of + cell.to(tl.int64) * (value_size * batch)) * _UNIT + head * out_channels
            inside = earlier & (c < out_channels)[None, :]
            v = tl.load(values + at[:, None] + c[None, :], mask=inside, other=0).to(ACC)
            highest = tl.maximum(largest, tl.max(scores, axis=0))
            powers, before = tl.exp(scores - highest), tl.exp(largest - highest)
            total = total * before + tl.sum(powers, axis=0)
            sums = sums * before + tl.sum(powers[:, None] * v, axis=0)
            largest = highest
        mean = tl.where(count > 0, sums / tl.where(count > 0, total, 1), 0)
        tl.store(values + to + c, mean.to(values.dtype.element_ty), mask=c < out_channels)
    if member >= IMAGES * heads:
        wait(counter, arrivals, SHARED)
