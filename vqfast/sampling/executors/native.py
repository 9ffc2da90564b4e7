"""The whole of sampling in C++ (``csrc/sampler/``), for CPUs.

Float64 priors run in float64, all others in float32; the weights of a bfloat16 prior stay bfloat16.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vqfast.sampling.activations import ACTIVATIONS
from vqfast.sampling.program import CODES, CONDITION, Phase, Program, available
from vqfast.sampling.request import Request

_SECONDS = 0.1  # between looks at the keyboard
_IMAGES = 16  # a thread works alone when it has as many
_PRODUCTS = 1 << 14  # of a step for each thread: fewer take less time than threads to meet


def _plan(
    program: Program, offsets: dict[str, int], condition_channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``steps``, ``terms`` and ``taps`` as ``csrc/sampler/sampler.h`` has them."""
    steps: list[list[int]] = []
    terms: list[list[int]] = []
    taps: list[list[int]] = []
    phases = program.phases()
    for number, step in enumerate(program.steps):
        first = len(terms)
        for term in step.terms:
            inputs = condition_channels if term.source == CONDITION else 0  # of codes they are the embeddings
            channels = program.steps[term.source].channels if term.source >= 0 else inputs
            terms.append(
                [term.source, channels, offsets.get(term.weight or "", -1), len(taps), len(term.taps)]
            )
            early = [available(term.source, tap, phases[:number]) == Phase.ROW for tap in term.taps]
            taps += [[*tap, known] for tap, known in zip(term.taps, early, strict=True)]
        residual = -1 if step.residual is None else step.residual
        biases = offsets.get(step.bias or "", -1), offsets.get(step.label_bias or "", -1)
        activation = ACTIVATIONS.index(step.activation)
        row = [step.width, activation, phases[number], residual, *biases, *program.reach(number)]
        steps.append([*row, first, len(terms) - first])
    return torch.tensor(steps), torch.tensor(terms), torch.tensor(taps)


def _threads(program: Program, weights: dict[str, Tensor], batch: int) -> int:
    """As many threads as the average step of a position keeps busy."""
    late = [step for step, phase in zip(program.steps, program.phases(), strict=True) if phase != Phase.ROW]
    matrices = [t.weight for step in late for t in step.terms if t.source != CODES and t.weight]
    products = batch * sum(weights[name].numel() for name in matrices) // max(1, len(late))
    return max(1, min(torch.get_num_threads(), products // _PRODUCTS))


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W)``."""
    program, weights = request.program, request.weights
    offsets, end = {}, 0
    for name, weight in weights.items():
        offsets[name] = end
        end += weight.numel()
    flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
    if flat.dtype == torch.float16:
        flat = flat.float()
    batch, height, width = request.known.shape
    condition = request.condition
    if condition is None:
        condition = flat.new_empty(batch, 0, height, width)
    threads = _threads(program, weights, batch)
    draw = request.draw
    sizes = torch.tensor(
        [
            program.num_embeddings,
            batch,
            height,
            width,
            program.block(height, width),
            condition.shape[1],
            *program.reach(CODES),
            threads,
            max(1, min(threads, batch // _IMAGES)),
            draw.seed - (draw.seed >> 63 << 64),
            draw.top_k or 0,
        ]
    )
    plan = (*_plan(program, offsets, condition.shape[1]), sizes, flat)
    none = flat.new_empty(0)
    labels = none.long() if request.labels is None else request.labels.contiguous()
    condition = condition.to(torch.float64 if flat.dtype == torch.float64 else torch.float32).contiguous()
    known, codes = request.known.contiguous(), torch.empty_like(request.known)
    memory = torch.ops.vqfast_native.prepare_sampler(*plan, labels)
    top_p = 1.0 if draw.top_p is None else draw.top_p
    done, count = 0, 1
    while done < height * width:
        count = min(count, height * width - done)
        began = time.perf_counter()
        torch.ops.vqfast_native.run_sampler(
            *plan,
            condition,
            known,
            draw.numbers.contiguous(),
            codes,
            memory,
            draw.temperature,
            top_p,
            done,
            count,
        )
        request.progress(batch * count)
        done += count
        count = max(1, min(2 * count, int(count * _SECONDS / (time.perf_counter() - began))))
    return codes
