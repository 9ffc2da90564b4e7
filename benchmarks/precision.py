"""What ``precision="bfloat16"`` costs: samples of priors that have learned scikit-learn's handwritten digits.

Each digit is a grid of 8x8 values of 0 to 16, in place of codes; WaveNet takes them row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast import PixelCNN, WaveNet
from vqfast.priors.base import CausalPrior
from vqfast.sampling import parallel
from vqfast.sampling.draw import gumbel
from vqfast.sampling.precision import BFLOAT16

NUM_EMBEDDINGS = 17
PRIORS: dict[str, tuple[Callable[[], CausalPrior], tuple[int, ...]]] = {
    "gated 8x8, 32 channels, 5 layers": (partial(PixelCNN, NUM_EMBEDDINGS, 32, 5), (8, 8)),
    "WaveNet, 64 steps, 32 channels, 6 layers": (partial(WaveNet, NUM_EMBEDDINGS, 32, 6), (64,)),
}
SEED, NUM = 1, 500


def trained(prior: CausalPrior, digits: Tensor, steps: int) -> CausalPrior:
    """The prior after so many steps of Adam."""
    optimizer = torch.optim.Adam(prior.parameters(), 2e-3)
    for step in range(steps):
        indices = digits[torch.randint(len(digits), (64,), generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        F.cross_entropy(prior(indices), indices).backward()
        optimizer.step()
    return prior.eval()


@torch.no_grad()
def logits_of(prior: CausalPrior, codes: Tensor, precision: str | None) -> Tensor:
    """Logits ``(B, positions, K)`` of codes in a precision."""
    grid = codes.view(len(codes), -1, codes.shape[-1]) if codes.ndim == 3 else codes.unsqueeze(1)
    return parallel.logits(*prior.lower(), grid, precision=precision).flatten(2).movedim(1, 2)


def bits(logits: Tensor, codes: Tensor) -> str:
    """Bits a code, and the standard error of the mean."""
    each = F.cross_entropy(logits.movedim(2, 1), codes.flatten(1), reduction="none").mean(1) / math.log(2)
    return f"{each.mean():.4f} ± {each.std() / math.sqrt(len(each)):.4f}"


def cost(prior: CausalPrior, shape: tuple[int, ...]) -> dict[str, dict[str, str]]:
    """Samples in each precision: their bits in both, and how many draws are others in bfloat16."""
    found = {}
    for name, precision in (("samples in float32", None), ("samples in bfloat16", BFLOAT16)):
        codes = prior.sample(NUM, shape, seed=SEED, precision=precision)
        exact, reduced = (logits_of(prior, codes, each) for each in (None, BFLOAT16))
        noise = gumbel(SEED, torch.arange(NUM), torch.arange(codes[0].numel()), NUM_EMBEDDINGS)
        drawn = [(logits + noise).argmax(2) for logits in (exact, reduced)]
        other = (drawn[0] != drawn[1]).double()
        found[name] = {
            "bits a code by float32": bits(exact, codes),
            "by bfloat16": bits(reduced, codes),
            "draws that differ, given the same codes before": f"{other.mean():.2%}",
            "samples with such a draw": f"{other.amax(1).mean():.1%}",
        }
    return found


def findings(full: bool) -> dict[str, dict[str, dict[str, str]]]:
    """A table a prior; empty without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return {}
    images = torch.from_numpy(load_digits().images).long()
    tables = {}
    for name, (make, shape) in PRIORS.items():
        torch.manual_seed(0)
        prior = trained(make(), images.view(-1, *shape), 1500 if full else 150)
        tables[f"{name}: {NUM} samples"] = cost(prior, shape)
    return tables
