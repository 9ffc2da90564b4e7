"""The GPU sampler: each row of the grid is two launches of the kernel in ``triton_kernel.py``.

The first launch computes everything that is known when the row starts, the second one the row's positions. A
CUDA graph would save nothing: the host prepares a launch while the GPU is busy with the one before.

Small batches draw several rows side by side, in the order of ``vqfast/sampling/wavefront.py``: then some
columns of all of them are two launches. Blocks meet once, and read a weight once, for all of these rows.

Values have the dtype of the weights. Sums and logits are float32, or float64 for float64 weights. ``top_k``
and ``top_p`` need sorted logits: then PyTorch draws, between two launches for each position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqfast.ops.nearest.tunings import fallback
from vqfast.sampling.executors.triton_plan import UNIT, Plan, Tables, head_channels, padded
from vqfast.sampling.executors.triton_tunings import SAMPLING, Launch, Tuning, pick
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import Wavefront, raster, wavefront

if TYPE_CHECKING:
    from vqfast.ops.launch import Kept, Launched

# Positions that a group draws at once by rows side by side. More fill a tile without them: then one row is
# drawn after another.
TOGETHER = 32


def tunings_of(weight: Tensor) -> dict[int, Tuning]:
    """The tunings for weights like ``weight``, by the largest batch that each serves."""
    from vqfast.ops.launch import architecture

    table, arch = SAMPLING[weight.element_size()], architecture(weight.device)
    return table.get(arch) or table[fallback(arch)]


def tuning_of(weight: Tensor, images: int, rows: int = 1) -> Tuning:
    """The tuning for a batch of ``images``, of which ``rows`` rows are drawn side by side."""
    return pick(tunings_of(weight), images, rows)


def order_of(request: Request) -> Wavefront:
    """The order in which positions are drawn."""
    images = tuning_of(request.weight, len(request.known)).position.images
    if 2 * images > TOGETHER:
        return raster(request.program, *request.grid)
    front = wavefront(request.program, request.weights, *request.grid)
    return front if images * front.rows <= TOGETHER else raster(request.program, *request.grid)


def constants(
    launch: Launch,
    dtype: torch.dtype,
    draws: bool,
    head: int = 0,
    codes: int = 1,
    mixture: bool = False,
    strided: bool = False,
    front: bool = False,
) -> dict[str, object]:
    """The kernel's compile-time constants; ``head`` are the padded channels of an attention's head."""
    import triton

    images = min(16, max(1, launch.images // launch.members))  # drawn at a time
    # Which of two outer dimensions threads are laid along, values and weights alike, has changed with 3.7.
    columns_first = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    return {
        "IMAGES": launch.images,
        "BM": launch.rows,
        "BN": launch.columns,
        "BK": launch.depth,
        "BD": images if draws else 0,
        "BG": max(16, 128 // images),
        "DOT": launch.dot(dtype),
        "FIRST": columns_first,
        "SHARED": launch.members > 1,
        "AHEAD": launch.ahead,
        "HEAD": head,
        "CODES": codes,
        "MIXTURE": mixture,
        "STRIDED": strided,
        "FRONT": front,
    }


def members_of(launch: Launch, groups: int, device: torch.device) -> int:
    """Blocks of a group. All blocks run at once, one on each multiprocessor, so that they can wait."""
    if device.type != "cuda":
        return 1
    return max(
        1, min(launch.members, torch.cuda.get_device_properties(device).multi_processor_count // groups)
    )


class Sampling:
    """The memory of a plan for one batch, and its launches."""

    def __init__(self, request: Request, tuning: Tuning, front: Wavefront) -> None:
        weight, condition, num_embeddings = request.weight, request.condition, request.program.num_embeddings
        images = len(request.known)
        batch = padded(images, max(launch.images for launch in tuning))
        index = torch.arange(batch, device=weight.device).clamp(
            max=images - 1
        )  # filled up with the last image
        channels = 0 if condition is None else condition.shape[1]
        tables = [request.weights[step.label_bias] for step in request.program.steps if step.label_bias]
        num_classes, labels = (len(tables[0]), request.labels) if tables else (1, None)
        plan = self.plan = Plan(request.program, request.weights, front, batch, num_classes, channels, tuning)
        values = weight.new_zeros(plan.units["values"] * UNIT)
        self.condition = None
        if condition is not None:
            self.condition = plan.condition.view(values, batch)[:, :, :images, :channels]
        sums = values.new_zeros(
            plan.units["sums"] * UNIT, dtype=torch.promote_types(weight.dtype, torch.float32)
        )
        plan.write_starts(sums)
        codes = index.new_full(
            (len(plan.codes), plan.codes[0].rows, plan.codes[0].columns, batch), num_embeddings
        )
        known = request.known[index]
        seed = request.draw.seed
        self.request, self.images, self.front = request, images, front
        self.arguments: dict[str, Any] = {
            "values": values,
            "sums": sums,
            "codes": codes.int(),
            "labels": torch.zeros_like(index) if labels is None else labels[index],
            "known": known,
            "numbers": request.draw.numbers[index],
            "seed": index.new_tensor([seed - (seed >> 63 << 64)]),
            "temperature": weight.new_tensor([request.draw.temperature], dtype=torch.float64),
            "out": torch.empty_like(known),
            "batch": batch,
            "distance": front.distance,
            "width": front.width,
            "per_image": known[0].numel(),
            "K": num_embeddings,
            "choices": request.program.num_choices,
        }
        self.kernels = {tables: self._kernel(tables) for tables in (plan.row, plan.position)}

    def launch(
        self, tables: Tables, begin: int, end: int, moment: int, iterations: int, columns: int
    ) -> None:
        """Launches jobs ``begin..end - 1`` of ``tables``, ``iterations`` times for ``columns`` positions.

        They are those of each row that has one at ``moment``.
        """
        from vqfast.ops.launch import on

        if begin == end:
            return
        kernel, blocks, arguments = self._launched(tables, begin, end, moment, iterations, columns)
        with on(self.arguments["out"]):
            kernel(blocks, arguments)

    def _launched(
        self, tables: Tables, begin: int, end: int, moment: int, iterations: int, columns: int
    ) -> Launched:
        """What ``launch`` launches."""
        out, rows = self.arguments["out"], self.front.side_by_side(moment)
        blocks, kernel, given = self.kernels[tables]
        groups = len(out) // tables.launch.images
        given |= {
            "counters": torch.zeros(groups, dtype=torch.int32, device=out.device),
            "y": rows[0],
            "x": moment - rows[0] * self.front.distance,
            "rows": len(rows),
            "iterations": iterations,
            "columns": columns,
            "begin": begin,
            "end": end,
        }
        return kernel, blocks, tuple([given[name] for name in kernel.kernel.arg_names if name in given])

    def _kernel(self, tables: Tables) -> tuple[int, Kept, dict[str, Any]]:
        """The number of blocks for ``tables``, the kernel, and the arguments that stay the same."""
        from vqfast.ops.launch import Kept
        from vqfast.sampling.executors.triton_kernel import sample

        launch, out, positions = tables.launch, self.arguments["out"], tables is self.plan.position
        groups = len(out) // launch.images
        members = members_of(launch, groups, out.device)
        chosen = constants(
            launch,
            self.arguments["values"].dtype,
            positions,
            positions * head_channels(self.request.program),
            len(self.plan.codes),
            self.request.program.num_mixtures > 0,
            any(step.stride > 1 for step in self.request.program.steps),
            self.front.rows > 1,
        )
        options = {**chosen, "num_warps": launch.warps, "num_stages": launch.stages}
        if members > 1:
            options["launch_cooperative_grid"] = True
        given = {**tables.tensors(), **self.arguments, "members": members}
        return groups * members, Kept(sample, options), given

    def draw(self) -> Tensor:
        """Codes ``(B, H, W, S)``."""
        from vqfast.ops.launch import compile_together

        plan, front = self.plan, self.front
        device, before = self.arguments["out"].device, None
        launches = [self._launched(tables, 0, 1, 0, 1, 1) for tables in self.kernels if tables.jobs]
        compile_together(self.arguments["out"], *launches)
        for moment in range(0, front.moments, front.chunk):
            end = min(moment + front.chunk, front.moments)
            y = front.side_by_side(moment)[-1]
            x = moment - y * front.distance
            if self.condition is not None and x % plan.block == 0:
                count = min(plan.block, front.width - x)
                given = self.request.condition_of(y, x, count).permute(2, 0, 1)
                self.condition[y % front.rows, :count] = given
            self.launch(plan.row, 0, len(plan.row.jobs), moment, 1, end - moment)
            for begin, stop in self._same_rows(moment, end):
                self._positions(begin, stop)
            if device.type == "cuda":  # at most two chunks are queued, for progress and Ctrl-C
                if before is not None:
                    before.synchronize()
                before = torch.cuda.current_stream(device).record_event()
            self.request.progress(
                self.images * len(plan.codes) * (front.positions(end) - front.positions(moment))
            )
        out: Tensor = self.arguments["out"]
        return out[: self.images]

    def _same_rows(self, moment: int, end: int) -> Iterator[tuple[int, int]]:
        """The moments ``moment..end - 1`` of a chunk, parted where a row ends."""
        while moment < end:
            first = self.front.side_by_side(moment)[0]
            stop = min(end, first * self.front.distance + self.front.width)
            yield moment, stop
            moment = stop

    def _positions(self, begin: int, end: int) -> None:
        """Computes and draws the positions of the moments ``begin..end - 1``, at which rows are the same."""
        plan, draw = self.plan, self.request.draw
        jobs = len(plan.position.jobs)
        if draw.top_k is None and draw.top_p is None:
            self.launch(plan.position, 0, jobs, begin, end - begin, 1)
            return
        for moment in range(begin, end):
            first = 0
            for code, drawing in enumerate(plan.drawing):
                self.launch(plan.position, first, drawing, moment, 1, 1)
                for y in self.front.side_by_side(moment):
                    self._draw(y, moment - y * self.front.distance, code)
                first = drawing + 1
            self.launch(plan.position, first, jobs, moment, 1, 1)

    def _draw(self, y: int, x: int, code: int) -> None:
        """The draw of the kernel, in PyTorch."""
        request, images, plan = self.request, self.images, self.plan
        num_codes = len(plan.codes)
        outputs = request.program.steps[-1].channels
        cache = plan.values[plan.first_logits + code]
        logits = cache.view(self.arguments["sums"], self.arguments["batch"])[cache.slot(y, x)]
        noise = request.noise((y * request.grid[1] + x) * num_codes, num_codes)
        known = request.known[:, y, x, code]
        drawn = request.drawn(logits[:images, :outputs], noise, code).where(known < 0, known)
        self.arguments["out"][:images, y, x, code] = drawn
        self.arguments["codes"][code][plan.codes[code].slot(y, x)][:images] = drawn.clamp(min=0)


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W, S)``."""
    front = order_of(request)
    return Sampling(request, tuning_of(request.weight, len(request.known), front.rows), front).draw()
