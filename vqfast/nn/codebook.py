"""How a codebook starts, how it follows its vectors, and how its dead codes revive."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqfast.checks import check_untransformed
from vqfast.functional import nearest_code, unit
from vqfast.nn import ranks

USAGE_DECAY = 0.99  # of the average that tells a gradient codebook's dead codes


class Batch(NamedTuple):
    """What a codebook learns from one batch; ``C`` is the number of codebooks side by side.

    ``vectors``: ``(N, C, D)``, or ``None`` where no code revives. ``mask``: bool ``(N,)``, which of them
    count, or ``None`` for all. ``counts`` and ``sums``: number and sum of the vectors of each code,
    ``(K,)`` and ``(K, D)``, or with C before.
    """

    vectors: Tensor | None
    mask: Tensor | None
    counts: Tensor
    sums: Tensor


def masked_statistics(
    vectors: Tensor, indices: Tensor, mask: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    """``counts (C, K)`` and ``sums (C, K, D)`` of ``vectors (N, C, D)`` with ``indices (N, C)``, as ``mask
    (N,)`` says; those masked out go to a bin of their own, NaN or not.
    """
    _, books, dim = vectors.shape
    first = torch.arange(books, device=vectors.device) * (num_embeddings + 1)
    bins = (torch.where(mask.unsqueeze(1), indices, num_embeddings) + first).flatten()
    rows = vectors.reshape(-1, dim)
    counts = bins.new_zeros(books * (num_embeddings + 1)).index_add_(0, bins, torch.ones_like(bins))
    sums = rows.new_zeros(len(counts), dim).index_add_(0, bins, rows)
    return counts.view(books, -1)[:, :-1], sums.view(books, -1, dim)[:, :-1]


class Codebook(nn.Module):
    """Codes that learn by gradients or by a moving average; see ``VQLayer`` for the options.

    Under torch.distributed every batch is that of all ranks: codebooks that were equal stay so, to the bit.

    Args:
        shape: ``(K, D)``, or ``(C, K, D)`` for codebooks side by side.

    Attributes:
        codebook: of that shape; a parameter, or with ``decay`` a buffer.
        ema_counts, ema_sums: the moving average, with ``decay``; ``revive_below`` alone has the counts too.
        initialised: bool scalar, with ``kmeans_init``: whether the codes have left their random start.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        decay: float | None,
        eps: float,
        metric: str,
        kmeans_init: bool,
        revive_below: float,
        learnable: bool,
    ) -> None:
        super().__init__()
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; want a number between 0 and 1, or None")
        if eps <= 0:
            raise ValueError(f"eps is {eps}; want a positive number")
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric is {metric!r}; want 'l2' or 'cosine'")
        if not 0 <= revive_below < torch.inf:
            raise ValueError(f"revive_below is {revive_below}; want 0 (never) or a positive number")
        self.num_embeddings = shape[-2]
        self.decay, self.eps, self.metric, self.learnable = decay, eps, metric, learnable
        self.kmeans_init, self.revive_below = kmeans_init, revive_below
        codebook = torch.empty(shape)
        if decay is None:
            self.codebook = nn.Parameter(codebook, requires_grad=learnable)
        else:
            self.register_buffer("codebook", codebook)
        if decay is not None or revive_below:
            self.register_buffer("ema_counts", codebook.new_empty(shape[:-1]))
        if decay is not None:
            self.register_buffer("ema_sums", torch.empty_like(codebook))
        if kmeans_init:
            self.register_buffer("initialised", torch.empty((), dtype=torch.bool))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Codes uniform within ``1 / K``; the moving average starts as if each had been seen once."""
        bound = 1 / self.num_embeddings
        self.set_codebook(torch.empty_like(self.codebook).uniform_(-bound, bound))
        self._mark(initialised=False)

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Replaces the codes by ``codebook (K, D)`` and restarts the moving average from them.

        Raises:
            ValueError: the shape is another.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want {tuple(self.codebook.shape)}")
        codebook = codebook.to(self.codebook)
        self.codebook.copy_(unit(codebook) if self.metric == "cosine" else codebook)
        if self.decay is not None or self.revive_below:
            self.ema_counts.fill_(self._fresh_count)
        if self.decay is not None:
            self.ema_sums.copy_(self.codebook * self._fresh_count)
        self._mark(initialised=True)

    def freeze(self, frozen: bool = True) -> None:
        """Stops the codes from learning and reviving, or with ``False`` lets them again."""
        self.learnable = not frozen
        if self.decay is None:
            self.codebook.requires_grad_(self.learnable)

    def codes(self) -> Tensor:
        """The codes of this pass: unit vectors with the cosine metric, and a copy where they may move in
        place while backward still needs them.
        """
        moves = self.decay is not None or self.revive_below
        codes = self.codebook.clone() if moves else self.codebook
        return unit(codes) if self.metric == "cosine" else codes

    @property
    def follows(self) -> bool:
        """Whether a forward pass moves the state that ``learn`` moves."""
        return self.training and self.learnable and bool(self.decay is not None or self.revive_below)

    @property
    def starts(self) -> bool:
        """Whether the next forward pass starts the codes by k-means.

        While they wait the buffer is looked at: DistributedDataParallel may have brought another rank's.
        """
        if self._waits and not torch.compiler.is_compiling():
            self._read_mark()
        return self.training and self._waits

    @torch.no_grad()
    def start(self, vectors: Tensor, mask: Tensor | None) -> None:
        """Fits the codes to all ranks' ``vectors (N, C, D)`` by k-means; ``mask`` as in ``Batch``.

        Raises:
            ValueError: there is no finite vector.
        """
        check_untransformed()
        vectors = vectors.to(self.codebook.dtype)
        codebook = kmeans_of_ranks(vectors, mask, self.num_embeddings, self.metric == "cosine")
        self.set_codebook(codebook.view_as(self.codebook))

    @torch.no_grad()
    def learn(self, *batches: Batch) -> None:
        """Follows the vectors of ``batches`` taken together, then revives dead codes.

        No vectors move nothing, and a code that was given one with a NaN or an infinity sits the step out.
        """
        check_untransformed()
        counts = ranks.total(sum(batch.counts for batch in batches)).to(self.ema_counts.dtype)
        some = counts.sum(-1, keepdim=True) > 0
        if self.decay is None:
            self.ema_counts.lerp_(counts, (1 - USAGE_DECAY) * some.to(counts.dtype))
        else:
            self._follow(counts, ranks.total(sum(batch.sums for batch in batches)), some)
        if self.revive_below:
            masks = [batch.mask for batch in batches]
            mask = None if masks[0] is None else torch.stack(masks, 1).flatten()
            # vector by vector, not batch by batch: so ranks in a row are the joined batch
            self._revive(torch.stack([batch.vectors for batch in batches], 1).flatten(0, 1), mask)

    def _follow(self, counts: Tensor, sums: Tensor, some: Tensor) -> None:
        """One step of the exponential moving average (van den Oord et al. 2017, appendix A.1).

        ``N_k <- g N_k + (1 - g) n_k``, ``m_k <- g m_k + (1 - g) sum z_e``, ``e_k = m_k / N_k`` with the
        counts smoothed to ``(N_k + eps) / (N + K eps) * N``.
        """
        finite = (sums * 0).sum(-1) == 0  # in fewer passes than isfinite
        rate = (1 - self.decay) * (finite & some).to(counts.dtype)
        sums = torch.where(finite.unsqueeze(-1), sums, 0).to(self.ema_sums.dtype)
        self.ema_counts.lerp_(counts, rate)
        self.ema_sums.lerp_(sums, rate.unsqueeze(-1))
        seen = self.ema_counts.sum(-1, keepdim=True)
        smoothed = (self.ema_counts + self.eps) / (seen + self.num_embeddings * self.eps) * seen
        codes = self.ema_sums / smoothed.unsqueeze(-1)
        self.codebook.copy_(unit(codes) if self.metric == "cosine" else codes)

    def _revive(self, vectors: Tensor, mask: Tensor | None) -> None:
        """Puts random vectors in the place of codes whose average count is below the threshold."""
        fresh = ranks.sample(vectors, mask, self.num_embeddings)  # (K, C, D)
        fresh = fresh.to(self.codebook.dtype).transpose(0, 1).reshape(self.codebook.shape)
        dead = (self.ema_counts < self.revive_below) & fresh.isfinite().all(-1)
        self.codebook.copy_(torch.where(dead.unsqueeze(-1), fresh, self.codebook))
        self.ema_counts.copy_(torch.where(dead, self._fresh_count, self.ema_counts))
        if self.decay is not None:
            self.ema_sums.copy_(torch.where(dead.unsqueeze(-1), fresh * self._fresh_count, self.ema_sums))

    @property
    def _fresh_count(self) -> float:
        """The average count that a new code is given: it isn't dead at once."""
        return max(1.0, self.revive_below)

    def _mark(self, *, initialised: bool) -> None:
        # beside the buffer in Python, so that later steps are compiled and captured without the start
        self._waits = self.kmeans_init and not initialised
        if self.kmeans_init:
            self.initialised.fill_(initialised)

    def _read_mark(self) -> None:
        if self.kmeans_init and not self.initialised.is_meta:
            self._waits = not self.initialised.item()

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._read_mark()


@torch.no_grad()
def kmeans(
    x: Tensor, num_embeddings: int, seed: int = 0, iterations: int = 10, cosine: bool = False
) -> Tensor:
    """A codebook fitted to ``x (N, D)`` by Lloyd's algorithm, from distinct random vectors: ``(K, D)``.

    A code that loses all its vectors stays. With fewer than K distinct vectors some codes are doubles.
    With ``cosine`` (``x`` of length 1) the codes are unit vectors: spherical k-means.

    Raises:
        ValueError: ``x`` isn't ``(N, D)`` with N, D >= 1, or K is below 1.
    """
    if x.ndim != 2 or x.numel() == 0 or num_embeddings < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, num_embeddings is {num_embeddings}; want (N, D), K >= 1"
        )
    distinct = x.unique(dim=0)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    codebook = distinct[order[torch.arange(num_embeddings) % len(distinct)].to(x.device)]
    for _ in range(iterations):
        indices = nearest_code(x, codebook)
        counts = torch.bincount(indices, minlength=num_embeddings).unsqueeze(1)
        sums = torch.zeros_like(codebook).index_add_(0, indices, x)
        codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)
        codebook = unit(codebook) if cosine else codebook
    return codebook


@torch.library.custom_op("vqfast::kmeans_of_ranks", mutates_args=())
def kmeans_of_ranks(vectors: Tensor, mask: Tensor | None, num_embeddings: int, cosine: bool) -> Tensor:
    """``kmeans`` of all ranks' finite ``vectors (N, C, D)`` that ``mask (N,)`` shows: ``(C, K, D)``.

    An op, so that a compiled first step needn't look into it. Seeded by the first rank's torch generator.
    """
    counted = vectors.isfinite().all(-1).all(-1)
    joined = ranks.gather(vectors[counted if mask is None else counted & mask])
    if not len(joined):
        raise ValueError(f"z_e has shape {tuple(vectors.shape)} and no finite vector to start k-means from")
    seed = int(torch.randint(2**62, (), device="cpu"))
    books = [kmeans(x, num_embeddings, seed, cosine=cosine) for x in joined.unbind(1)]
    return ranks.from_first(torch.stack(books))


@kmeans_of_ranks.register_fake
def _(vectors: Tensor, mask: Tensor | None, num_embeddings: int, cosine: bool) -> Tensor:
    return vectors.new_empty(vectors.shape[1], num_embeddings, vectors.shape[2])
