"""K-means: a codebook fitted to vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.checks import check_sizes
from vqfast.functional import nearest_code, quantize, unit
from vqfast.nn import ranks

CANDIDATES = 1024  # of a round of seeding: their distances from each other fit in cache
SPREAD = 0.1  # of spare code vectors around the data's vectors, in standard deviations of the data
START_LIMIT, START_LIMIT_A_CODE = 16384, 8  # vectors that a layer starts from; the larger counts
LARGE = 40  # binary exponent from which on sums of squares could overflow float32


@torch.no_grad()
def kmeans(
    vectors: Tensor, num_embeddings: int, *, seed: int = 0, iterations: int = 10, cosine: bool = False
) -> Tensor:
    """A codebook fitted to vectors by Lloyd's algorithm from k-means++ seeds.

    A code vector that loses all its vectors stays where it is. With fewer than K distinct vectors each of
    them is a code vector, and the other code vectors stand near them, all different.

    Args:
        vectors: floating point ``(N, D)``, finite.
        num_embeddings: K.
        cosine: whether the code vectors have length 1, for vectors of length 1 (spherical k-means).

    Returns:
        ``(K, D)``, of the dtype of ``vectors``, float32 at the least.

    Raises:
        ValueError: ``vectors`` isn't ``(N, D)`` with N, D >= 1, or K is below 1.
    """
    check_sizes(num_embeddings=num_embeddings)
    if vectors.ndim != 2 or vectors.numel() == 0:
        raise ValueError(f"vectors has shape {tuple(vectors.shape)}; want (N, D) with N, D >= 1")
    x = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    _, exponent = math.frexp(float(x.abs().max()))
    scale = 2.0 ** min(0, LARGE - exponent)  # multiplying by a power of two is exact
    x = x * scale
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.unique(x, dim=0) if len(x) <= num_embeddings else _seeds(x, num_embeddings, generator)
    if len(codebook) < num_embeddings:  # it holds every distinct vector
        beside = _beside(codebook, num_embeddings - len(codebook), generator)
        return torch.cat([codebook, unit(beside) if cosine else beside]) / scale
    for _ in range(iterations):
        out = quantize(x, codebook, channel_dim=-1, return_statistics=True)
        counts = out.counts.unsqueeze(1)
        codebook = torch.where(counts > 0, out.sums / counts.clamp(min=1), codebook)
        codebook = unit(codebook) if cosine else codebook
    return codebook / scale


def _seeds(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` vectors of ``x (N, D)`` by k-means++, or all distinct vectors if they are fewer.

    Source: Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding". A vector is drawn
    with a probability proportional to its squared distance from the nearest seed so far. Here a round draws
    many candidates at once, and keeps each with the probability ``d' / d``: ``d`` is its squared distance
    from the seeds before the round, ``d'`` that from these seeds and the earlier candidates of the round.
    """

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64).to(x.device)

    chosen = (uniform(1) * len(x)).long()
    squares = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    seeds, new = [], x[chosen]
    while True:
        seeds.append(new)
        _, distances = nearest_code(x, new, return_distances=True)
        squares = torch.minimum(squares, distances.double().square())
        cumulative = squares.cumsum(0)
        missing = num - sum(map(len, seeds))
        if missing == 0 or cumulative[-1] == 0:
            return torch.cat(seeds)
        drawn = torch.searchsorted(cumulative, uniform(min(missing, CANDIDATES)) * cumulative[-1], right=True)
        drawn = drawn.clamp(max=len(x) - 1)
        candidates = x[drawn].double()
        between = torch.cdist(candidates, candidates, compute_mode="donot_use_mm_for_euclid_dist").square()
        earlier = torch.ones_like(between, dtype=torch.bool).tril(-1)
        closest = torch.where(earlier, between, torch.inf).amin(1)
        new = x[drawn[uniform(len(drawn)) * squares[drawn] < closest]]


def _beside(distinct: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` vectors near random vectors of ``distinct (n, D)``."""
    near = distinct[torch.randint(len(distinct), (num,), generator=generator).to(distinct.device)]
    spread = distinct.std(0, correction=0)
    if not spread.any():
        spread = torch.full_like(spread, float(distinct.abs().max()) or 1.0)
    noise = torch.randn(num, distinct.shape[1], generator=generator, dtype=distinct.dtype)
    return near + SPREAD * spread * noise.to(distinct.device)


def draw_seed() -> int:
    """A seed from torch's generator of the CPU."""
    return int(torch.randint(2**62, (), device="cpu"))


@torch.library.custom_op("vqfast::kmeans_of_ranks", mutates_args=())
def kmeans_of_ranks(
    vectors: Tensor, mask: Tensor | None, codebook: Tensor, start: Tensor, cosine: bool
) -> Tensor:
    """``kmeans`` of all ranks' finite ``vectors (N, C, D)`` that ``mask (N,)`` shows, shaped as ``codebook``.

    Of more vectors than the limit a random part is used. Where ``codebook`` on the first rank differs from
    its random ``start``, it was put there from outside and is the result. The seed is the first rank's. This
    is an op so that a compiled first step doesn't trace it.

    Raises:
        ValueError: no rank has a finite vector.
    """
    seed = draw_seed()
    placed = torch.tensor(not torch.equal(codebook, start), dtype=torch.float32, device=codebook.device)
    if ranks.from_first(placed):
        return ranks.from_first(codebook.clone())
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    counted = vectors.isfinite().all(-1).all(-1)
    joined = ranks.gather(vectors[counted if mask is None else counted & mask])
    if not len(joined):
        raise ValueError(f"z_e has shape {tuple(vectors.shape)} and no finite vector to start k-means from")
    num = codebook.shape[-2]
    limit = max(START_LIMIT, START_LIMIT_A_CODE * num)
    if len(joined) > limit:
        generator = torch.Generator().manual_seed(seed)
        joined = joined[torch.randperm(len(joined), generator=generator)[:limit].to(joined.device)]
    codebooks = [kmeans(own, num, seed=seed, cosine=cosine) for own in joined.unbind(1)]
    return ranks.from_first(torch.stack(codebooks)).view(codebook.shape).to(codebook.dtype)


@kmeans_of_ranks.register_fake
def _(vectors: Tensor, mask: Tensor | None, codebook: Tensor, start: Tensor, cosine: bool) -> Tensor:
    return torch.empty_like(codebook)
