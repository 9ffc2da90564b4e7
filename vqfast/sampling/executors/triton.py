"""The GPU sampler: each row of the grid is two launches of the kernel in ``triton_kernel.py``.

The first launch computes everything that is known when the row starts, the second one the row's positions. A
CUDA graph would save nothing: the host prepares a launch while the GPU is busy with the one before.

Values have the dtype of the weights. Sums and logits are float32, or float64 for float64 weights. ``top_k``
and ``top_p`` need sorted logits: then PyTorch draws, between two launches for each position.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from vqfast.ops.nearest.tunings import fallback
from vqfast.sampling.executors.triton_plan import UNIT, Plan, Tables, head_channels, padded
from vqfast.sampling.executors.triton_tunings import SAMPLING, Launch, Tuning
from vqfast.sampling.request import Request


def tunings_of(weight: Tensor) -> dict[int, Tuning]:
    """The tunings for weights like ``weight``, by the largest batch that each serves."""
    from vqfast.ops.launch import architecture

    table, arch = SAMPLING[weight.element_size()], architecture(weight.device)
    return table.get(arch) or table[fallback(arch)]


def tuning_of(weight: Tensor, images: int) -> Tuning:
    """The tuning for a batch of ``images``."""
    tunings = tunings_of(weight)
    return tunings[min(widest for widest in tunings if images <= widest)]


def constants(
    launch: Launch,
    dtype: torch.dtype,
    draws: bool,
    head: int = 0,
    codes: int = 1,
    mixture: bool = False,
    strided: bool = False,
) -> dict[str, object]:
    """The kernel's compile-time constants; ``head`` are the padded channels of an attention's head."""
    images = min(16, max(1, launch.images // launch.members))  # drawn at a time
    return {
        "IMAGES": launch.images,
        "BM": launch.rows,
        "BN": launch.columns,
        "BK": launch.depth,
        "BD": images if draws else 0,
        "BG": max(16, 128 // images),
        "DOT": launch.dot(dtype),
        "SHARED": launch.members > 1,
        "AHEAD": launch.stages == 1,
        "HEAD": head,
        "CODES": codes,
        "MIXTURE": mixture,
        "STRIDED": strided,
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

    def __init__(self, request: Request, tuning: Tuning) -> None:
        weight, condition, num_embeddings = request.weight, request.condition, request.program.num_embeddings
        images = len(request.known)
        batch = padded(images, max(launch.images for launch in tuning))
        index = torch.arange(batch, device=weight.device).clamp(
            max=images - 1
        )  # filled up with the last image
        channels = 0 if condition is None else condition.shape[1]
        tables = [request.weights[step.label_bias] for step in request.program.steps if step.label_bias]
        num_classes, labels = (len(tables[0]), request.labels) if tables else (1, None)
        plan = self.plan = Plan(
            request.program, request.weights, request.grid, batch, num_classes, channels, tuning
        )
        values = weight.new_zeros(plan.units["values"] * UNIT)
        self.condition = None
        if condition is not None:
            self.condition = plan.condition.view(values, batch)[0, :, :images, :channels]
        sums = values.new_zeros(
            plan.units["sums"] * UNIT, dtype=torch.promote_types(weight.dtype, torch.float32)
        )
        plan.write_starts(sums)
        codes = index.new_full(
            (len(plan.codes), plan.codes[0].rows, plan.codes[0].columns, batch), num_embeddings
        )
        known = request.known[index]
        seed = request.draw.seed
        self.request, self.images = request, images
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
            "width": request.grid[1],
            "per_image": known[0].numel(),
            "K": num_embeddings,
            "choices": request.program.num_choices,
        }
        self.tables = {tables: tables.tensors() for tables in (plan.row, plan.position)}

    def launch(
        self, tables: Tables, begin: int, end: int, y: int, x: int, iterations: int, columns: int
    ) -> None:
        """Launches jobs ``begin..end - 1`` of ``tables``, ``iterations`` times for ``columns`` positions."""
        from vqfast.ops.launch import on
        from vqfast.sampling.executors.triton_kernel import sample

        if begin == end:
            return
        launch, out, positions = tables.launch, self.arguments["out"], tables is self.plan.position
        groups = len(out) // launch.images
        members = members_of(launch, groups, out.device)
        together = {"launch_cooperative_grid": True} if members > 1 else {}
        with on(out):
            sample[(groups * members,)](
                **self.tables[tables],
                **self.arguments,
                counters=torch.zeros(groups, dtype=torch.int32, device=out.device),
                y=y,
                x=x,
                iterations=iterations,
                columns=columns,
                begin=begin,
                end=end,
                members=members,
                **constants(
                    launch,
                    self.arguments["values"].dtype,
                    positions,
                    positions * head_channels(self.request.program),
                    len(self.plan.codes),
                    self.request.program.num_mixtures > 0,
                    any(step.stride > 1 for step in self.request.program.steps),
                ),
                num_warps=launch.warps,
                num_stages=launch.stages,
                **together,
            )

    def draw(self) -> Tensor:
        """Codes ``(B, H, W, S)``."""
        plan, (height, width) = self.plan, self.request.grid
        device, before = self.arguments["out"].device, None
        for y, x in product(range(height), range(0, width, plan.block)):
            count = min(plan.block, width - x)
            if self.condition is not None:
                self.condition[:count] = self.request.condition_of(y, x, count).permute(2, 0, 1)
            self.launch(plan.row, 0, len(plan.row.jobs), y, x, 1, count)
            self._positions(y, x, count)
            if device.type == "cuda":  # at most two rows are queued, for progress and Ctrl-C
                if before is not None:
                    before.synchronize()
                before = torch.cuda.current_stream(device).record_event()
            self.request.progress(self.images * len(plan.codes) * count)
        out: Tensor = self.arguments["out"]
        return out[: self.images]

    def _positions(self, y: int, x: int, count: int) -> None:
        """Computes and draws ``count`` positions of row ``y`` from column ``x`` on."""
        plan, draw = self.plan, self.request.draw
        jobs = len(plan.position.jobs)
        if draw.top_k is None and draw.top_p is None:
            self.launch(plan.position, 0, jobs, y, x, count, 1)
            return
        for column in range(x, x + count):
            begin = 0
            for code, drawing in enumerate(plan.drawing):
                self.launch(plan.position, begin, drawing, y, column, 1, 1)
                self._draw(y, column, code)
                begin = drawing + 1
            self.launch(plan.position, begin, jobs, y, column, 1, 1)

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
    return Sampling(request, tuning_of(request.weight, len(request.known))).draw()
