"""The kernel of the Triton executor: it runs a sampling program from tables.

A *group* of blocks owns its images through all positions and steps, so that groups never wait for each other.
A group of one block (many images) streams the weights from L2 and needs no barrier. The blocks of a larger
group (few images), its *members*, divide the tiles of each step and wait for each other after it, at a
counter in memory. Tables and sums of the next step are loaded before they wait, and the weights and the
places of its first inputs (``AHEAD``), so that after it only the values are left to load, all at once.

Values are kept as ``[row slot][column slot][image][channel]``; those of a step with a stride too, with the
zeros between them. The rows of a matrix product are a group's images, or the images of a whole row of the
grid; of a wavefront (``vqfast/sampling/wavefront.py``), those of a position or of some columns of each row
that is drawn side by side. A *place* says where a value is read: its base, its stride, its slots of rows and
columns, and the offset from the position that is computed. A step's *inputs* are what it multiplies, adds and
looks up.

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
from vqfast.sampling.executors.triton_meeting import arrive, wait
from vqfast.sampling.executors.triton_plan import JOB, PLACE, UNIT

_UNIT, _PLACE, _JOB = tl.constexpr(UNIT), tl.constexpr(len(PLACE)), tl.constexpr(len(JOB))
# Branches compare with these; sigmoid and product are what remains.
_RELU, _ELU, _SILU = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("relu", "elu", "silu"))
_GELU, _TANH = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("gelu", "tanh"))
_GATE, _GLU, _NORM = (tl.constexpr(ACTIVATIONS.index(name)) for name in ("gate", "glu", "norm"))


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
def _store(v, mask, c, beside, source, at, target, residual):
    """Stores ``v`` plus the residual, which is ``beside``, as channels ``c``."""
    if residual > 0:
        v += tl.load(source + beside[:, None] + c[None, :], mask=mask, other=0).to(v.dtype)
    tl.store(target + at[:, None] + c[None, :], v.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _by_row(x, FIRST: tl.constexpr):
    """``x`` of each row, as a tile whose columns come first has it, or one whose rows do."""
    return x[None, :, None] if FIRST else x[:, None, None]


@triton.jit
def _by_column(x, FIRST: tl.constexpr):
    """``x`` of each column and depth, in such a tile."""
    return x[:, None, :] if FIRST else x[None, :, :]


@triton.jit
def _step(
    job, places, values, sums, codes, weights, tables, labels, counter, arrivals,
    first, member, members, first_y, x, rows, distance, columns, width_of_grid, batch, K,
    IMAGES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    DOT: tl.constexpr, FIRST: tl.constexpr, SHARED: tl.constexpr, AHEAD: tl.constexpr, STRIDED: tl.constexpr,
    FRONT: tl.constexpr,
):  # fmt: skip
    """Computes a member's tiles of a job, for ``columns`` positions of each row from ``(first_y, x)`` on.

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
    place = (
        places + tl.load(job) * _PLACE
    )  # of the result, the residual, the partial sums, then of the inputs: products, adds, lookups
    first_add, first_lookup = products, products + adds
    if STRIDED:  # at a row or position without values all is zero: nothing is read there
        stride = tl.load(job + 19).to(tl.int32)
        reads = tl.where((first_y % stride == 0) & ((columns > 1) | (x % stride == 0)), 1, 0)
    else:
        reads = 1
    last_product, last_add, last_lookup = (
        products * reads,
        first_add + adds * reads,
        first_lookup + lookups * reads,
    )
    ACC: tl.constexpr = sums.dtype.element_ty
    k = tl.arange(0, BK)
    if DOT:
        tile = k[:, None] * BN + tl.arange(0, BN)[None, :]
    else:  # products are kept apart by their depth, and summed once: a sum over threads is a barrier
        tile = _by_column(tl.arange(0, BN)[:, None] * BK + k[None, :], FIRST)
        spread = _by_column(tl.zeros([BN, 1], tl.int32) + k[None, :], FIRST)  # each thread loads its own
    positions = columns
    if FRONT:  # a row that starts is the last one, and has the columns before its chunk's too
        lead = tl.load(job + 20).to(tl.int32)
        begun = tl.where(x == (rows - 1) * distance, lead, 0)
        positions = rows * columns + begun
    row_tiles = tl.cdiv(positions * IMAGES, BM)
    m_end = row_tiles * BM
    for item in range(member, tiles * row_tiles, members):
        j = item // row_tiles
        m = item % row_tiles * BM + tl.arange(0, BM)
        n = j * BN + tl.arange(0, BN)
        image = first + m % IMAGES
        y = first_y
        column = x + m // IMAGES
        if FRONT:
            below = tl.minimum(m // IMAGES // columns, rows - 1)
            y = first_y + below
            column += lead - below * (columns + distance) - tl.where(below == rows - 1, begun, 0)
        matrix = weights + (weight_tile + j * products) * (BK * BN)
        source = place + 3 * _PLACE
        padded = tl.load(place + 2 * _PLACE + 1)  # the stride of the sums, in units
        at = start + tl.load(labels + image) * padded
        at = tl.where(partial > 0, cells(place + 2 * _PLACE, y, column, image, batch), at) * _UNIT
        acc = tl.load(sums + at[:, None] + n[None, :])
        to = cells(place, y, column, image, batch) * _UNIT
        beside = cells(place + _PLACE, y, column, image, batch) * _UNIT
        channel = tl.where(activation >= _GATE, n // 2 + n % 2 * (width // 2), n)
        # Of the first inputs: where they are and the weights, before waiting; then all that is there at once.
        ahead = ()
        weight = ()
        for i in tl.static_range(AHEAD):
            ahead += (cells(source + i * _PLACE, y, column, image, batch),)
            multiplied = tile < tl.where(i < last_product, BK * BN, 0)
            weight += (tl.load(matrix + i * (BK * BN) + tile, mask=multiplied, other=0),)
        if item == member:
            wait(counter, arrivals, SHARED)
        value = ()
        code = ()
        if not DOT:
            apart = tl.zeros([BN, BM, BK] if FIRST else [BM, BN, BK], ACC)
        for i in tl.static_range(AHEAD):
            looked_up = m < tl.where((i >= first_lookup) & (i < last_lookup), m_end, 0)
            code += (tl.load(codes + ahead[i], mask=looked_up, other=0),)
            at = ahead[i] * _UNIT
            depth = tl.where(i < last_product, BK, 0)
            if DOT:
                value += (tl.load(values + at[:, None] + k[None, :], mask=(k < depth)[None, :], other=0),)
            else:
                a = tl.load(values + _by_row(at, FIRST) + spread, mask=spread < depth, other=0)
                apart += a.to(ACC) * weight[i].to(ACC)
        for i in tl.static_range(AHEAD if DOT else 0):
            if i < last_product:
                acc = tl.dot(value[i], weight[i], acc, input_precision="ieee", out_dtype=ACC)
        for i in tl.range(AHEAD, last_product, num_stages=2 if AHEAD and DOT else None):
            w = tl.load(matrix + i * (BK * BN) + tile)
            at = cells(source + i * _PLACE, y, column, image, batch) * _UNIT
            if DOT:
                a = tl.load(values + at[:, None] + k[None, :])
                acc = tl.dot(a, w, acc, input_precision="ieee", out_dtype=ACC)
            else:
                a = tl.load(values + _by_row(at, FIRST) + spread)
                apart += a.to(ACC) * w.to(ACC)
        if not DOT:
            summed = tl.sum(apart, axis=2)
            acc += tl.trans(summed) if FIRST else summed
        known = (n < width)[None, :]
        for i in tl.static_range(AHEAD):
            at = ahead[i] * _UNIT
            added = n < tl.where((i >= first_add) & (i < last_add), width, 0)
            acc += tl.load(values + at[:, None] + channel[None, :], mask=added[None, :], other=0).to(ACC)
            at = (table + ((i - first_lookup) * (K + 1) + code[i]) * padded) * _UNIT
            looked_up = m < tl.where((i >= first_lookup) & (i < last_lookup), m_end, 0)
            acc += tl.load(tables + at[:, None] + n[None, :], mask=looked_up[:, None], other=0).to(ACC)
        for i in range(tl.maximum(AHEAD, first_add), last_add):
            at = cells(source + i * _PLACE, y, column, image, batch) * _UNIT
            acc += tl.load(values + at[:, None] + channel[None, :], mask=known, other=0).to(ACC)
        for i in range(tl.maximum(AHEAD, first_lookup), last_lookup):
            row = tl.load(codes + cells(source + i * _PLACE, y, column, image, batch))
            at = (table + ((i - first_lookup) * (K + 1) + row) * padded) * _UNIT
            acc += tl.load(tables + at[:, None] + n[None, :]).to(ACC)
        inside = (m < positions * IMAGES)[:, None]
        if FRONT:
            inside &= (column < width_of_grid)[:, None]
        if STRIDED:
            valued = ((y % stride == 0) & (column % stride == 0))[:, None]
        if activation >= _GATE:
            left, right = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
            half = j * (BN // 2) + tl.arange(0, BN // 2)
            gated = inside & (half < width // 2)[None, :]
            out = _multiplied(left, right, activation)
            if STRIDED:
                out = tl.where(valued, out, 0)
            _store(out, gated, half, beside, values, to, values, residual)
        else:
            v = _activated(acc, activation)
            if STRIDED:
                v = tl.where(valued, v, 0)
            mask = inside & known
            if to_sums > 0:
                _store(v, mask, n, beside, values, to, sums, residual)
            else:
                _store(v, mask, n, beside, values, to, values, residual)
    if member >= tiles * row_tiles:
        wait(counter, arrivals, SHARED)


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
    counter, arrivals, first, member, members, first_y, first_x, rows, distance, width, per_image, batch,
    choices, K,
    IMAGES: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr, CODES: tl.constexpr, MIXTURE: tl.constexpr,
    SHARED: tl.constexpr, FRONT: tl.constexpr,
):  # fmt: skip
    """Draws a code of a position of each row for the group's images: argmax of logits + temperature * gumbel.

    An image has ``per_image`` codes. Of a mixture it draws the component, and then the value. It computes in
    float64. A code is -1 where a logit is NaN or the highest isn't finite. One counter of Philox gives the
    words of four neighbouring categories.
    """
    place = places + tl.load(job) * _PLACE  # of the codes, then of the logits
    key = tl.load(seed)
    scale = tl.load(temperature)
    for item in range(member, rows * (IMAGES // BD), members):
        row = item // (IMAGES // BD) if FRONT else 0
        y, x = first_y + row, first_x - row * distance
        position = y * width + x
        number = position  # of the code in its image
        if CODES > 1:
            number = position * CODES + tl.load(job + 1).to(tl.int32) - 1
        image = first + item * BD - row * IMAGES + tl.arange(0, BD)
        outputs = sums + cells(place + _PLACE, y, x, image, batch) * _UNIT
        logits = outputs[:, None]
        sample = tl.load(numbers + image)
        given = tl.load(known + image.to(tl.int64) * per_image + number)
        to = cells(place, y, x, image, batch)
        if item == member:
            wait(counter, arrivals, SHARED)
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
        code = tl.where(given < 0, code, given)
        tl.store(out + image.to(tl.int64) * per_image + number, code.to(tl.int64))
        tl.store(codes + to, tl.maximum(code, 0).to(tl.int32))
    if member >= rows * (IMAGES // BD):
        wait(counter, arrivals, SHARED)


@triton.jit(
    do_not_specialize=[
        *("y", "x", "rows", "distance", "iterations", "columns", "begin", "end", "members", "batch"),
        *("width", "per_image", "choices", "K"),
    ]
)
def sample(
    jobs, places, values, sums, codes, weights, tables, labels, known, numbers, seed, temperature, out,
    counters, y, x, rows, distance, iterations, columns, begin, end, members, batch, width, per_image,
    choices, K,
    IMAGES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BD: tl.constexpr, BG: tl.constexpr, DOT: tl.constexpr, FIRST: tl.constexpr, SHARED: tl.constexpr,
    AHEAD: tl.constexpr, HEAD: tl.constexpr, CODES: tl.constexpr, MIXTURE: tl.constexpr,
    STRIDED: tl.constexpr, FRONT: tl.constexpr,
):  # fmt: skip
    """Runs jobs ``begin..end - 1`` for ``columns`` positions from ``(y, x)`` on, ``iterations`` times.

    With ``FRONT`` it does so for ``rows`` rows at once, each ``distance`` columns behind the one above.
    Each member of each group is one block. ``values`` and ``weights`` have the model's dtype, ``sums`` the
    accumulator's. ``counters`` has a zero for each group. ``BD`` is 0 if the draw isn't among the jobs, and
    ``HEAD`` if no attention is. Products that aren't ``DOT`` have their columns ``FIRST``, or their rows.
    ``CODES`` are the codes of a position, and ``choices`` with ``MIXTURE`` the components. ``STRIDED``: some
    step has a stride.
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
                _draw(
                    job, places, sums, codes, known, numbers, seed, temperature, out,
                    counter, arrivals, group * IMAGES, member, members, y, x + i, rows if FRONT else 1,
                    distance, width, per_image, batch, choices if MIXTURE else K, K,
                    IMAGES, BD, BG, CODES, MIXTURE, SHARED, FRONT,
                )  # fmt: skip
            elif HEAD > 0 and tl.load(job + 14) > 0:
                attend(
                    job, places, values, counter, arrivals, group * IMAGES, member, members, y, x + i, width,
                    batch, sums.dtype.element_ty, IMAGES, HEAD, SHARED,
                )  # fmt: skip
            else:
                _step(
                    job, places, values, sums, codes, weights, tables, labels, counter, arrivals,
                    group * IMAGES, member, members, y, x + i, rows, distance,
                    1 if FRONT and BD > 0 else columns, width, batch, K,
                    IMAGES, BM, BN, BK, DOT, FIRST, SHARED, AHEAD, STRIDED, FRONT,
                )  # fmt: skip
            arrive(counter, SHARED)
            arrivals += members
