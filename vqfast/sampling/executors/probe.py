"""The draws of a small prior, by every line of the Triton executor's table, against the torch executor's."""

from __future__ import annotations

from types import ModuleType

import torch

from vqfast.sampling.executors import torch as plain
from vqfast.sampling.sampler import Draw, Request


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError where draws differ: of 30, in float16 and bfloat16, seven may.

    One wrong draw makes most of the draws after it differ. ``reference`` isn't run: its logits are sums in
    another order, which in float16 decide other draws.
    """
    from vqfast.priors.pixelcnn import PixelCNN

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = PixelCNN(20, 40, 2, num_classes=2, condition_channels=1, head_channels=24)
    for parameter in prior.parameters():
        parameter.mul_(2)
    prior = prior.to(device, dtype)
    numbers = torch.arange(5, device=device)
    known = torch.full((5, 2, 3), -1, device=device)
    condition = numbers.to(dtype).sin().view(-1, 1, 1, 1).expand(5, 1, 2, 3)
    request = Request((2, 3), Draw(0, numbers, 1.0, None, None), known, numbers % 2, condition)
    want = plain.run(prior, request)
    allowed = 0 if dtype in (torch.float32, torch.float64) else 7
    for tuning in module.tunings_of(next(prior.parameters())).values():
        differ = int((module.Sampling(prior, request, tuning).draw() != want).sum())
        if differ > allowed:
            raise AssertionError(f"{differ} of {want.numel()} codes are wrong with {tuning}")
