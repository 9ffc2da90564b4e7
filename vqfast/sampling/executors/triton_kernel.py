"""The kernel of the Triton executor: it runs a sampling program from tables.

A *group* of blocks owns its images through all positions and steps, so that groups never wait for each other.
A group of one block (many images) streams the weights from L2 and needs no barrier. The blocks of a larger
group (few images), its *members*, divide the tiles of each step and wait for each other after it, at a
counter in memory. Tables, sums and the first weights of the next step are loaded before they wait, so that
after it only the values are left to load.

Values are kept as ``[row slot][column slot][image][channel]``; those of a step with a stride too, with the
zeros between them. The rows of a matrix product are a group's images, or the images of a whole row of the
grid. A *place* says where a value is read: its base, its stride, its slots of rows and columns, and the
offset from the position that is computed.

A *job* is a product with one matrix (a step, or the part of it that only depends on the rows above), an
attention, or the draw.

Predicted for an H100, not measured (32x32 codes, K 512, 15 gated layers of 128 channels). Batch 1: 34 jobs a
position, each with 0.7 us to wait and 0.7 us for a load, a product and a store: 48 us a position, 50 ms an
image, and up to 8 ms for the rows' parts. Batch 8192 in bfloat16: each of 128 blocks reads 1.6 M of 6.4 M
weights for each position, 0.4 TB in all, 75 ms at 5.5 TB/s, for 26 TFLOP. The rows' parts are 80 TFLOP,
160 ms at 500 TFLOP/s, and move 0.4 TB of values, 150 ms. Together 350 to 550 ms, 15,000 to 23,000 images/s;
in float32, without tensor cores at 60 TFLOP/s, at most 4,600. Of a position's 400 us, the float64 logarithms
of the draw are 20 us.
"""

# mypy: ignore-errors
# Triton compiles these functions; their arguments have no Python types.

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.sampling.activations import ACTIVATIONS
from vqfast.sampling.executors.triton_attention import attend
from vqfast.sampling.executors.triton_cells import cells
from vqfast.sampling.executors.triton_plan import JOB, PLACE, UNIT

_UNIT, _PLACE, _JOB = tl.constexpr(UNIT), tl.constexpr(len(PLACE)), tl.constexpr(len(JOB))
# Branches compare with these; sigmoid and product are what remains.
_RELU, _ELU, _SILU = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("relu", "elu", "silu"))
_GELU, _TANH = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("gelu", "tanh"))
_GATE, _GLU, _NORM = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("gate", "glu", "norm"))


@triton.jit
def _wait(counter, arrivals, SHARED: tl.constexpr):
    """Waits until the group's blocks have finished the jobs before."""
    if SHARED:
        while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
            pass
        tl.debug_barrier()


@triton.jit
def _arrive(counter, SHARED: tl.constexpr):
    """Tells the group that the block's stores can be read."""
    tl.debug_barrier()
    if SHARED:
        tl.atomic_add(counter, 1, sem="release")


@triton.jit
def _tanh(x):
    """tanh, by an exponential that can't overflow; NaN stays NaN."""
    t = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, t - 1, 1 - t) / (1 + t)


@triton.jit
def _sigmoid(x):
    """The sigmoid; see ``_tanh``."""
    s = tl.exp(-tl.abs(x))
    return tl.where(x < 0, s, 1) / (1 + s)


@triton.jit
def _activated(x, activation):
    """The activation of the sums. More branches would take more registers, also where they aren't taken."""
    if activation > _RELU:
        if activation == _ELU:
            x = tl.where(x < 0, tl.exp(tl.where(x < 0, x, 0)) - 1, x)
        elif activation == _GELU:
            x *= 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        else:
            scale = tl.where(activation == _TANH, 2, 1)  # tanh is a scaled sigmoid
            p = scale * _sigmoid(scale * x) + (1 - scale)
            x = tl.where(activation == _SILU, x * p, p)
    return tl.where((activation == _RELU) & (x < 0), 0, x)


@triton.jit
def _multiplied(a, b, activation):
    """The activation of the two halves of the sums."""
    if activation == _GATE:
        a = _tanh(a)
    if activation <= _GLU:
        b = _sigmoid(b)
    if activation == _NORM:
        b = 1 / tl.sqrt(tl.where(b < 1, 1, b))
    return a * b


@triton.jit
def _store(v, mask, c, place, source, target, y, x, image, batch, residual):
    """Stores ``v`` plus the residual as channels ``c`` of the place. The residual's place is the next one."""
    if residual > 0:
        at = cells(place + _PLACE, y, x, image, batch) * _UNIT
        v += tl.load(source + at[:, None] + c[None, :], mask=mask, other=0).to(v.dtype)
    at = cells(place, y, x, image, batch) * _UNIT
    tl.store(target + at[:, None] + c[None, :], v.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _step(
    job, places, values, sums, codes, weights, tables, labels, counter, arrivals,
    first, member, members, y, x, columns, batch, K,
    IMAGES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    DOT: tl.constexpr, SHARED: tl.constexpr, AHEAD: tl.constexpr, STRIDED: tl.constexpr,
):  # fmt: skip
    """Computes a member's tiles of a job, for ``columns`` positions from ``(y, x)`` on.

    The member has the group's images from ``first`` on.
    """
    # fields in the order of JOB
    tiles = tl.load(job + 2).to(tl.int32)
    products = tl.load(job + 3).to(tl.int32)
    adds = tl.load(job + 4).to(tl.int32)
    lookups = tl.load(job + 5).to(tl.int32)
    weight_tile = tl.load(job + 6)
    table = tl.load(job + 7)
    start = tl.load(job + 8)
    partial = tl.load(job + 9)
    width = tl.load(job + 10).to(tl.int32)
    to_sums = tl.load(job + 11)
    activation = tl.load(job + 12)
    residual = tl.load(job + 13)
    if STRIDED:  # at a row or position without values all is zero: nothing is read there
        stride = tl.load(job + 18).to(tl.int32)
        reads = tl.where((y % stride == 0) & ((columns > 1) | (x % stride == 0)), 1, 0)
    else:
        reads = 1
    place = (
        places + tl.load(job) * _PLACE
    )  # of the result, the residual, the partial sums, then of the inputs
    ACC: tl.constexpr = sums.dtype.element_ty
    k = tl.arange(0, BK)
    if DOT:
        tile = k[:, None] * BN + tl.arange(0, BN)[None, :]
    else:  # products are kept apart by their depth, and summed once: a sum over threads is a barrier
        tile = (tl.arange(0, BN)[:, None] * BK + k[None, :])[None, :, :]
    row_tiles = tl.cdiv(columns * IMAGES, BM)
    for item in range(member, tiles * row_tiles, members):
        j = item // row_tiles
        m = item % row_tiles * BM + tl.arange(0, BM)
        n = j * BN + tl.arange(0, BN)
        image = first + m % IMAGES
        column = x + m // IMAGES
        matrix = weights + (weight_tile + j * products) * (BK * BN)
        source = place + 3 * _PLACE
        padded = tl.load(place + 2 * _PLACE + 1)  # the stride of the sums, in units
        at = start + tl.load(labels + image) * padded
        at = tl.where(partial > 0, cells(place + 2 * _PLACE, y, column, image, batch), at) * _UNIT
        acc = tl.load(sums + at[:, None] + n[None, :])
        if AHEAD:  # load before waiting; only the values are loaded after it
            w = tl.load(matrix + tile)
            at = cells(source, y, column, image, batch) * _UNIT
        if item == member:
            _wait(counter, arrivals, SHARED)
        if not DOT:
            apart = tl.zeros([BM, BN, BK], ACC)
        for p in range(products * reads):
            if not AHEAD:
                w = tl.load(matrix + p * (BK * BN) + tile)
                at = cells(source + p * _PLACE, y, column, image, batch) * _UNIT
            if DOT:
                a = tl.load(values + at[:, None] + k[None, :])
                acc = tl.dot(a, w, acc, input_precision="ieee", out_dtype=ACC)
            else:
                a = tl.load(values + at[:, None, None] + k[None, None, :])
                apart += a.to(ACC) * w.to(ACC)
            if AHEAD:
                w = tl.load(matrix + (p + 1) * (BK * BN) + tile)
                at = cells(source + (p + 1) * _PLACE, y, column, image, batch) * _UNIT
        if not DOT:
            acc += tl.sum(apart, axis=2)
        source += products * _PLACE
        channel = tl.where(activation >= _GATE, n // 2 + n % 2 * (width // 2), n)
        for t in range(adds * reads):
            at = cells(source + t * _PLACE, y, column, image, batch) * _UNIT
            acc += tl.load(values + at[:, None] + channel[None, :], mask=(n < width)[None, :], other=0).to(
                ACC
            )
        source += adds * _PLACE
        for t in range(lookups * reads):
            code = tl.load(codes + cells(source + t * _PLACE, y, column, image, batch))
            at = (table + (t * (K + 1) + code) * padded) * _UNIT
            acc += tl.load(tables + at[:, None] + n[None, :]).to(ACC)
        inside = (m < columns * IMAGES)[:, None]
        if STRIDED:
            valued = ((y % stride == 0) & (column % stride == 0))[:, None]
        if activation >= _GATE:
            left, right = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
            half = j * (BN // 2) + tl.arange(0, BN // 2)
            gated = inside & (half < width // 2)[None, :]
            out = _multiplied(left, right, activation)
            if STRIDED:
                out = tl.where(valued, out, 0)
            _store(out, gated, half, place, values, values, y, column, image, batch, residual)
        else:
            v = _activated(acc, activation)
            if STRIDED:
                v = tl.where(valued, v, 0)
            mask = inside & (n < width)[None, :]
            if to_sums > 0:
                _store(v, mask, n, place, values, sums, y, column, image, batch, residual)
            else:
                _store(v, mask, n, place, values, values, y, column, image, batch, residual)
    if member >= tiles * row_tiles:
        _wait(counter, arrivals, SHARED)


@triton.jit
def _value(parameters, component, key, number, sample, temperature, choices, K):
    """The code of a value of each image's component, whose distribution is logistic."""
    mean = tl.load(parameters + choices + tl.maximum(component, 0)).to(tl.float64)
    log_scale = tl.load(parameters + 2 * choices + tl.maximum(component, 0)).to(tl.float64)
    zeros = tl.zeros_like(component)
    counter = zeros + choices // 4
    words = tl.philox(key, counter, zeros + number, sample.to(tl.int32), (sample >> 32).to(tl.int32))
    word = words[0]
    for i in tl.static_range(1, 4):
        word = tl.where(choices % 4 == i, words[i], word)
    uniform = (word.to(tl.float64) + 0.5) * 2.0**-32
    scale = tl.where(temperature > 0, temperature * tl.exp(log_scale), 0.0)  # also where that is infinite
    value = mean + scale * (tl.log(uniform) - tl.log(1 - uniform))
    bounded = tl.minimum(tl.maximum(value, -1.0), 1.0)
    code = tl.floor((bounded + 1) * ((K - 1) * 0.5) + 0.5).to(tl.int32)
    return tl.where((component < 0) | (value != value), -1, code)


@triton.jit
def _draw(
    job, places, sums, codes, known, numbers, seed, temperature, out,
    first, member, members, y, x, position, per_image, batch, choices, K,
    IMAGES: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, CODES: tl.constexpr, MIXTURE: tl.constexpr,
):  # fmt: skip
    """Draws a code of a position for the group's images: argmax of logits + temperature * gumbel.

    An image has ``per_image`` codes. Of a mixture it draws the component, and then the value. It computes in
    float64. A code is -1 where a logit is NaN or the highest isn't finite. One counter of Philox gives the
    words of four neighbouring categories.
    """
    place = places + tl.load(job) * _PLACE  # of the codes, then of the logits
    key = tl.load(seed)
    scale = tl.load(temperature)
    number = position  # of the code in its image
    if CODES > 1:
        number = position * CODES + tl.load(job + 1).to(tl.int32) - 1
    for item in range(member, IMAGES // BD, members):
        image = first + item * BD + tl.arange(0, BD)
        outputs = sums + cells(place + _PLACE, y, x, image, batch) * _UNIT
        logits = outputs[:, None]
        sample = tl.load(numbers + image)
        low = (tl.zeros([BD, BG], tl.int64) + sample[:, None]).to(tl.int32)
        high = (tl.zeros([BD, BG], tl.int64) + (sample >> 32)[:, None]).to(tl.int32)
        best = tl.full([BD, BG], -float("inf"), tl.float64)
        drawn = tl.zeros([BD, BG], tl.int32)
        bad = tl.zeros([BD, BG], tl.int32)
        chosen_by = position * CODES if MIXTURE else number  # a position's codes have one component
        for begin in range(0, tl.cdiv(choices, 4), BG):
            g = tl.zeros([BD, BG], tl.int32) + (begin + tl.arange(0, BG))[None, :]
            words = tl.philox(key, g, tl.zeros([BD, BG], tl.int32) + chosen_by, low, high)
            for i in tl.static_range(4):
                code = g * 4 + i
                logit = tl.load(logits + code, mask=code < choices, other=-float("inf")).to(tl.float64)
                uniform = (words[i].to(tl.float64) + 0.5) * 2.0**-32
                score = logit - scale * tl.log(-tl.log(uniform))
                bad |= ((logit != logit) | (logit == float("inf"))).to(tl.int32)
                drawn = tl.where(score > best, code, drawn)
                best = tl.maximum(best, score)
        top = tl.max(best, axis=1)
        code = tl.min(tl.where(best == top[:, None], drawn, choices), axis=1)  # the lowest code of a tie
        code = tl.where((tl.max(bad, axis=1) > 0) | (top == -float("inf")), -1, code)
        if MIXTURE:
            code = _value(outputs, code, key, number, sample, scale, choices, K)
        given = tl.load(known + image.to(tl.int64) * per_image + number)
        code = tl.where(given < 0, code, given)
        tl.store(out + image.to(tl.int64) * per_image + number, code.to(tl.int64))
        tl.store(codes + cells(place, y, x, image, batch), tl.maximum(code, 0).to(tl.int32))


@triton.jit(
    do_not_specialize=[
        *("y", "x", "iterations", "columns", "begin", "end", "members", "batch", "width", "per_image"),
        *("choices", "K"),
    ]
)
def sample(
    jobs, places, values, sums, codes, weights, tables, labels, known, numbers, seed, temperature, out,
    counters, y, x, iterations, columns, begin, end, members, batch, width, per_image, choices, K,
    IMAGES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BD: tl.constexpr, BG: tl.constexpr, DOT: tl.constexpr, SHARED: tl.constexpr, AHEAD: tl.constexpr,
    HEAD: tl.constexpr, CODES: tl.constexpr, MIXTURE: tl.constexpr, STRIDED: tl.constexpr,
):  # fmt: skip
    """Runs jobs ``begin..end - 1`` for ``columns`` positions from ``(y, x)`` on, ``iterations`` times.

    Each member of each group is one block. ``values`` and ``weights`` have the model's dtype, ``sums`` the
    accumulator's. ``counters`` has a zero for each group. ``BD`` is 0 if the draw isn't among the jobs, and
    ``HEAD`` if no attention is. ``CODES`` are the codes of a position, and ``choices`` with ``MIXTURE`` the
    components. ``STRIDED``: some step has a stride.
    """
    member = tl.program_id(0) % members
    group = tl.program_id(0) // members
    counter = counters + group
    arrivals = 0
    for i in range(iterations):
        for number in range(begin, end):
            job = jobs + number * _JOB
            draws = tl.load(job + 1)
            if BD > 0 and draws > 0:
                _wait(counter, arrivals, SHARED)
                _draw(
                    job, places, sums, codes, known, numbers, seed, temperature, out,
                    group * IMAGES, member, members, y, x + i,
                    y * width + x + i, per_image, batch, choices if MIXTURE else K, K,
                    IMAGES, BD, BG, CODES, MIXTURE,
                )  # fmt: skip
            elif HEAD > 0 and tl.load(job + 14) > 0:
                _wait(counter, arrivals, SHARED)
                attend(
                    job, places, values, group * IMAGES, member, members, y, x + i, width, batch,
                    sums.dtype.element_ty, IMAGES, HEAD,
                )  # fmt: skip
            else:
                _step(
                    job, places, values, sums, codes, weights, tables, labels, counter, arrivals,
                    group * IMAGES, member, members, y, x + i, columns, batch, K,
                    IMAGES, BM, BN, BK, DOT, SHARED, AHEAD, STRIDED,
                )  # fmt: skip
            _arrive(counter, SHARED)
            arrivals += members
