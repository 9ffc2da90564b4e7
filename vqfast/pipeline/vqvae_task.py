"""What a VQ-VAE learns in a training: its loss and its figures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Source
from vqfast.functional import perplexity
from vqfast.models import CONFIGS, VQVAE, HierarchicalOutput, HierarchicalVQVAE, SecondStage, VQVAEOutput
from vqfast.pipeline.levels import level_name
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.ranks import Ranks

MODELS: dict[str, type[VQVAE | HierarchicalVQVAE]] = {
    **dict.fromkeys(CONFIGS, VQVAE),
    **dict.fromkeys(HierarchicalVQVAE.CONFIGS, HierarchicalVQVAE),
}
# The reconstruction error of an architecture, as its source has it. The others have the squared error over
# the variance of the data, times a weight.
ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ruseckas": F.mse_loss,
    "ruseckas-hierarchical": F.l1_loss,
    "vqvae2": F.mse_loss,
}
# Keras' example has no weight. With the other one the error of photographs, whose variance is about 1/16, is
# the plain squared error, whatever the contrast of the data: a larger error outweighs the commitment, and the
# encoder runs away from the codebook.
WEIGHTS = {"keras": 1.0}
WEIGHT = 1 / 16
VARIANCE_ITEMS = 1000  # images, or frames of clips, from which the variance of the data is taken


def vqvae_task(model: VQVAE | HierarchicalVQVAE | SecondStage, dataset: Source, ranks: Ranks) -> Task:
    """What a VQ-VAE learns: the error of the reconstruction, and the model's own loss.

    A decoder with a likelihood has the nats of a value in place of the error. The figures are loss, mse (of
    values in 0..1), and for each level perplexity and dead_codes.
    """
    weight = WEIGHTS.get(model.architecture, WEIGHT)
    error_of = ERRORS.get(model.architecture) or _over_variance(dataset, weight)
    sizes = model.codebook_sizes
    used = [torch.zeros(size, dtype=torch.bool, device=ranks.device) for size in sizes]

    def metrics(step: int, batch: Tensor) -> dict[str, Tensor]:
        out: VQVAEOutput | HierarchicalOutput
        x = batch.to(ranks.device)
        if isinstance(model, VQVAE) and model.num_mixtures:
            out, nats = model(x, return_nats=True)
            error = nats.mean() / x[0].numel()
        else:
            out = model(x)
            error = error_of(out.reconstruction, x)
        mse = F.mse_loss(out.reconstruction.detach(), x)
        figures = {"loss": error + out.loss, "mse": mse}
        levels = [out.indices] if isinstance(out.indices, Tensor) else out.indices
        for level, (indices, size) in enumerate(zip(levels, sizes, strict=True)):
            used[level].index_fill_(0, indices.flatten(), True)
            figures[level_name("perplexity", level)] = perplexity(indices, size)
        return figures

    def batch(share: Share) -> Tensor:
        return dataset.varied(share.numbers, share.chances)

    names = [level_name("dead_codes", level) for level in range(len(sizes))]
    return Task("VQ-VAE", len(dataset), batch, metrics, dict(zip(names, used, strict=True)))


def _over_variance(dataset: Source, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared error over the variance of the data, times ``weight``."""
    frames = dataset.shape[1] if len(dataset.shape) == 4 else 1
    subset = dataset.batch(range(0, len(dataset), -(-len(dataset) * frames // VARIANCE_ITEMS)))
    variance = subset.double().var(correction=0).clamp(min=1e-6).item()
    return lambda reconstruction, x: weight / variance * F.mse_loss(reconstruction, x)
