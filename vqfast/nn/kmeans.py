"""K-means: a codebook fitted to vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.functional import nearest_code, quantize, unit
from vqfast.nn import ranks

DRAWN = 1024  # candidates of a round of seeding: their distances from each other fit in cache
SPREAD = 0.1  # of code vectors beyond the data's, in standard deviations around them
LARGE = 40  # exponent from which on sums of squares could overflow float32


@torch.no_grad()
def kmeans(
    x: Tensor, num_embeddings: int, seed: int = 0, iterations: int = 10, cosine: bool = False
) -> Tensor:
    """A codebook fitted to finite ``x (N, D)`` by Lloyd's algorithm from k-means++ seeds: ``(K, D)``.

    A code that loses all its vectors stays. With fewer than K distinct vectors each has a code of its own,
    and the other codes stand near them, none equal to another. With ``cosine`` (``x`` of length 1) the codes
    are unit vectors: spherical k-means. The dtype is ``x``'s, float32 at the least.

    Raises:
        ValueError: ``x`` isn't ``(N, D)`` with N, D >= 1, or K is below 1.
    """
    if x.ndim != 2 or x.numel() == 0 or num_embeddings < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, num_embeddings is {num_embeddings}; want (N, D), K >= 1"
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    _, exponent = math.frexp(float(x.abs().max()))
    scale = 2.0 ** min(0, LARGE - exponent)  # exact, as all powers of two
    x = x * scale
    generator = torch.Generator().manual_seed(seed)
    codebook = x.unique(dim=0) if len(x) <= num_embeddings else _seeds(x, num_embeddings, generator)
    if len(codebook) < num_embeddings:  # every distinct vector is there
        beside = _beside(codebook, num_embeddings - len(codebook), generator)
        return torch.cat([codebook, unit(beside) if cosine else beside]) / scale
    for _ in range(iterations):
        out = quantize(x, codebook, channel_dim=-1, return_statistics=True)
        counts = out.counts.unsqueeze(1)
        codebook = torch.where(counts > 0, out.sums / counts.clamp(min=1), codebook)
        codebook = unit(codebook) if cosine else codebook
    return codebook / scale


def _seeds(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` rows of ``x (N, D)``, or all distinct ones if they are fewer, by k-means++.

    Source: Arthur and Vassilvitskii 2007. A row is drawn with a probability that grows with the square of its
    distance from the rows before it. Here some are drawn at once, and each is kept with the probability by
    which those before it in the round have brought it closer.
    """

    def noise(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64).to(x.device)

    chosen = (noise(1) * len(x)).long()
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
        drawn = torch.searchsorted(cumulative, noise(min(missing, DRAWN)) * cumulative[-1], right=True)
        drawn = drawn.clamp(max=len(x) - 1)
        rows = x[drawn].double()
        between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        earlier = torch.ones_like(between, dtype=torch.bool).tril(-1)
        closest = torch.where(earlier, between, torch.inf).amin(1)
        new = x[drawn[noise(len(drawn)) * squares[drawn] < closest]]


def _beside(distinct: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` vectors near random ones of ``distinct (n, D)``."""
    near = distinct[torch.randint(len(distinct), (num,), generator=generator).to(distinct.device)]
    spread = distinct.std(0, correction=0)
    if not spread.any():
        spread = torch.full_like(spread, float(distinct.abs().max()) or 1.0)
    noise = torch.randn(num, distinct.shape[1], generator=generator, dtype=distinct.dtype)
    return near + SPREAD * spread * noise.to(distinct.device)


def draw_seed() -> int:
    """From torch's generator."""
    return int(torch.randint(2**62, (), device="cpu"))


@torch.library.custom_op("vqfast::kmeans_of_ranks", mutates_args=())
def kmeans_of_ranks(
    vectors: Tensor, mask: Tensor | None, codebook: Tensor, start: Tensor, cosine: bool
) -> Tensor:
    """``kmeans`` of all ranks' finite ``vectors (N, C, D)`` that ``mask (N,)`` shows, as ``codebook``.

    Where the first rank's ``codebook`` isn't ``start`` any more, somebody has put it there: then it is the
    result. An op, so that a compiled first step needn't look into it. The first rank's seed counts.
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
    books = [kmeans(x, num, seed, cosine=cosine) for x in joined.unbind(1)]
    return ranks.from_first(torch.stack(books)).view(codebook.shape).to(codebook.dtype)


@kmeans_of_ranks.register_fake
def _(vectors, mask, codebook, start, cosine):
    return torch.empty_like(codebook)
