"""Sampling: checks, the draw, and the choice of an executor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqfast.functional import check_codes
from vqfast.ops import registry
from vqfast.prior.noise import gumbel

if TYPE_CHECKING:
    from vqfast.prior.base import CausalPrior

# An executor is a module vqfast.prior.executors.<name> with run(prior, request) -> codes (B, H, W), and
# refusal(prior) -> why it can't run, or None, where it can't always.
EXECUTORS = ("native", "triton", "torch", "reference")  # the order of preference
ALIASES = {"cached": "torch", "naive": "reference"}


@dataclass
class Draw:
    """How a code is drawn from logits: ``argmax(logits / temperature + gumbel)`` (the Gumbel-max trick)."""

    seed: int
    numbers: Tensor  # int64 (B,)
    temperature: float
    top_k: int | None
    top_p: float | None
    failed: bool | Tensor = False  # whether a logit was NaN

    def noise(self, first: int, count: int, num_embeddings: int) -> Tensor:
        """Gumbel noise of ``count`` positions from ``first`` on: float64 ``(B, count, K)``."""
        positions = torch.arange(first, first + count, device=self.numbers.device)
        return gumbel(self.seed, self.numbers, positions, num_embeddings)

    def __call__(self, logits: Tensor, noise: Tensor) -> Tensor:
        """``logits``, ``noise (B, K)`` -> codes int64 ``(B,)``."""
        self.failed = self.failed | logits.isnan().any()
        logits = logits.double()
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.temperature > 0:
            ordered, order = logits.sort(dim=1, descending=True, stable=True)
            p = (ordered / self.temperature).softmax(dim=1)
            hidden = p.cumsum(dim=1) - p >= self.top_p  # what stands before it is enough
            hidden[:, 0] = False
            logits = logits.masked_fill(torch.zeros_like(hidden).scatter(1, order, hidden), -torch.inf)
        # logits / temperature + noise, times temperature: so that 0 is greedy
        return torch.add(logits, noise, alpha=self.temperature).argmax(dim=1)


@dataclass
class Request:
    """What an executor is asked for; all tensors on the prior's device."""

    shape: tuple[int, int]
    draw: Draw
    known: Tensor  # int64 (B, H, W), -1 where to sample
    labels: Tensor | None = None  # int64 (B,)
    condition: Tensor | None = None  # (B, condition_channels, H, W)
    progress: Callable[[int], object] = field(default=lambda positions: None)


def executor(method: str, prior: CausalPrior) -> ModuleType:
    """The executor of that name or alias, for ``"auto"`` the first one that can run.

    Raises:
        ValueError: there is none of that name.
        NoBackendError: it can't run here.
    """
    if method == "auto":
        forced = registry.forced_backend()
        names = [name for name in EXECUTORS if name == "torch" or forced in (None, name)]
    else:
        names = [ALIASES.get(method, method)]
    for name in names:
        if name not in EXECUTORS:
            raise ValueError(f"method is {method!r}; want one of {', '.join(('auto', *ALIASES, *EXECUTORS))}")
        module = importlib.import_module(f"vqfast.prior.executors.{name}")
        reason = module.refusal(prior) if hasattr(module, "refusal") else None
        if reason is None:
            return module
    raise registry.NoBackendError(reason)


@torch.no_grad()
def sample(
    prior: CausalPrior,
    num: int,
    shape: tuple[int, ...],
    labels: Tensor | int | None = None,
    condition: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    known: Tensor | None = None,
    numbers: Tensor | None = None,
    method: str = "auto",
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """See ``CausalPrior.sample``."""
    device = next(prior.parameters()).device
    shape = tuple(shape)
    for name, value in (("num", num), ("batch_size", batch_size), *((f"shape {shape}", s) for s in shape)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} is {value!r}; want a positive integer")
    if len(shape) != prior.ndim:
        raise ValueError(f"shape is {shape}; want {prior.ndim} sizes")
    if not temperature >= 0 or temperature == float("inf"):
        raise ValueError(f"temperature is {temperature}; want a finite number, 0 (greedy) or more")
    if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
        raise ValueError(f"top_k is {top_k!r}; want a positive integer")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; want a number above 0, up to 1")
    if not (isinstance(seed, Integral) and 0 <= seed < 2**64):
        raise ValueError(f"seed is {seed!r}; want an integer in 0..2^64 - 1")
    run = executor(method, prior).run
    if numbers is None:
        numbers = torch.arange(num)
    check_codes("numbers", numbers, 2**63)
    if numbers.shape != (num,):
        raise ValueError(f"numbers has shape {tuple(numbers.shape)}; want ({num},)")
    if isinstance(labels, int):
        labels = torch.full((num,), labels)
    if known is None:
        known = torch.full((num, *shape), -1)
    check_codes("known", known, prior.num_embeddings, least=-1)
    if known.shape != (num, *shape):
        raise ValueError(f"known has shape {tuple(known.shape)}; want {(num, *shape)}")
    prior.check_conditioning(num, shape, labels, condition)

    grid = shape if len(shape) == 2 else (1, *shape)
    draw = Draw(int(seed), numbers.to(device, torch.int64), temperature, top_k, top_p)
    request = Request(grid, draw, known.to(device, torch.int64).view(num, *grid))
    if labels is not None:
        request.labels = labels.to(device, torch.int64)
    if condition is not None:
        request.condition = condition.to(next(prior.parameters())).view(num, -1, *grid)
    if progress is not None:
        request.progress = progress
    with torch.inference_mode():  # less overhead an op
        codes = torch.cat([run(prior, part) for part in _batches(request, num, batch_size)])
    return codes.clone().view(num, *shape)  # an ordinary tensor again


def _batches(request: Request, num: int, batch_size: int):
    for first in range(0, num, batch_size):
        rows = slice(first, first + batch_size)
        cut = {
            "draw": replace(request.draw, numbers=request.draw.numbers[rows]),
            "known": request.known[rows],
            "labels": None if request.labels is None else request.labels[rows],
            "condition": None if request.condition is None else request.condition[rows],
        }
        part = replace(request, **cut)
        yield part
        if part.draw.failed:
            raise ValueError("the prior's logits are NaN: its weights or its conditioning are")
