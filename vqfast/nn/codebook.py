"""How a codebook starts, how it follows its vectors, and how its dead codes revive."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqfast.checks import (
    Device,
    check_choice,
    check_flags,
    check_floating,
    check_number,
    check_placement,
    check_untransformed,
)
from vqfast.functional import unit
from vqfast.nn import passes, ranks
from vqfast.nn.kmeans import draw_seed, kmeans_of_ranks
from vqfast.nn.script import refuse_script
from vqfast.nn.sharded import gathered, write

USAGE_DECAY = 0.99  # of the average that tells a gradient codebook's dead codes
REACHABLE = 0.25  # times the vectors for each code: the threshold of revival where the one asked for is more
STATISTICS = ("ema_counts", "ema_sums")


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


class Kept(NamedTuple):
    """What a forward pass used of a codebook that it then moved, for its recomputation by a checkpoint.

    ``codebook``: as it was. ``started``, ``revived``: whether torch's generators were drawn from for that.
    """

    codebook: Tensor
    started: bool
    revived: bool


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
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    counts = bins.new_zeros(books * (num_embeddings + 1)).index_add_(0, bins, torch.ones_like(bins))
    sums = rows.new_zeros(len(counts), dim).index_add_(0, bins, rows)
    return counts.view(books, -1)[:, :-1], sums.view(books, -1, dim)[:, :-1]


class Codebook(nn.Module):
    """Codes that learn by gradients or by a moving average; see ``VQLayer`` for the options.

    Under torch.distributed every batch is that of all ranks: codebooks that were equal stay so, to the bit.

    The average is kept in float32, or in float64 after ``double()``, whatever dtype the module is given. Code
    vectors that anything else has put into ``codebook`` (a copy, a loaded state, another tensor) are what the
    average goes on from, and no k-means start overwrites them. A state loads whatever options it was saved
    with: what it has beyond these is left out, what it lacks starts anew from its codebook.

    Args:
        shape: ``(K, D)``, or ``(C, K, D)`` for codebooks side by side.

    Attributes:
        codebook: of that shape; a parameter, or with ``decay`` a buffer.
        ema_counts, ema_sums: the moving average, with ``decay``; ``revive_below`` alone has the counts too.
        initialised: float32 scalar, with ``kmeans_init``: 0 until the codes have left their random start. A
            number so that averages of models can be taken.
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    initialised: Tensor
    _waits: bool
    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        decay: float | None,
        eps: float,
        metric: str,
        kmeans_init: bool,
        revive_below: float,
        learnable: bool,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        check_number("decay", decay, above=0, below=1, optional=True)
        check_number("eps", eps, above=0)
        check_number("revive_below", revive_below, minimum=0)
        check_choice("metric", metric, ("l2", "cosine"))
        check_flags(kmeans_init=kmeans_init, learnable=learnable)
        self.num_embeddings = shape[-2]
        self.decay, self.eps, self.metric, self.learnable = decay, eps, metric, learnable
        self.kmeans_init, self.revive_below = kmeans_init, revive_below
        self._warned = False
        codebook = torch.empty(shape, device=device, dtype=dtype)
        wide = torch.promote_types(codebook.dtype, torch.float32)
        if decay is None:
            self.codebook = nn.Parameter(codebook, requires_grad=learnable)
        else:
            self.register_buffer("codebook", codebook)
        if decay is not None or revive_below:
            self.register_buffer("ema_counts", codebook.new_empty(shape[:-1], dtype=wide))
        if decay is not None:
            self.register_buffer("ema_sums", torch.empty_like(codebook, dtype=wide))
        if kmeans_init:
            self.register_buffer("initialised", codebook.new_empty((), dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Codes uniform within ``1 / K``; the moving average starts as if each had been seen once."""
        bound = 1 / self.num_embeddings
        codebook = self.codebook
        codes = torch.empty(codebook.shape, dtype=codebook.dtype, device=codebook.device)
        self.set_codebook(codes.uniform_(-bound, bound))
        self._mark(initialised=False)

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Replaces the codes by ``codebook (K, D)`` and restarts the moving average from them.

        Raises:
            TypeError: it isn't a floating-point tensor.
            ValueError: the shape is another.
        """
        check_floating(codebook=codebook)
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want {tuple(self.codebook.shape)}")
        codebook = codebook.to(self.codebook.device, self.codebook.dtype)
        codebook = unit(codebook).to(codebook.dtype) if self.metric == "cosine" else codebook
        write(self, "codebook", codebook)
        for name, value in self._fresh(codebook).items():
            getattr(self, name).copy_(value)
        self._mark(initialised=True)

    def freeze(self, frozen: bool = True) -> None:
        """Stops the codes from learning and reviving, or with ``False`` lets them again."""
        self.learnable = not frozen
        if self.decay is None:
            self.codebook.requires_grad_(self.learnable)

    def held(self, kept: Kept | None = None) -> Tensor:
        """The codebook as it is, or as the pass that ``kept`` it had it, with the same gradient."""
        if kept is None:
            return self.codebook
        return kept.codebook + (self.codebook - self.codebook.detach())

    def codes(self, kept: Kept | None = None) -> Tensor:
        """The codes of this pass: unit vectors with the cosine metric, and a copy where they may move in
        place while backward still needs them.
        """
        moves = kept is None and (self.decay is not None or self.revive_below)
        codes = passes.first(self.codebook.clone(), self.follows) if moves else self.held(kept)
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
        if self._waits and not torch.compiler.is_compiling() and not self.initialised.is_meta:
            self._waits = not self.initialised.item()
        return self.training and self._waits

    def keep(self, started: bool) -> Kept:
        """What a recomputation of this pass needs; to be called before ``learn``."""
        return Kept(self.codebook.detach().clone(), started, self.follows and self.revive_below > 0)

    def draw_again(self, kept: Kept) -> None:
        """Draws what the pass that ``kept`` the codebook drew, so that what draws later gets the same."""
        if kept.started:
            draw_seed()
        if kept.revived:
            ranks.noise(self.num_embeddings, self.codebook.device)

    @torch.no_grad()
    def start(self, vectors: Tensor, mask: Tensor | None) -> None:
        """Fits the codes to all ranks' ``vectors (N, C, D)`` by k-means; ``mask`` as in ``Batch``.

        If somebody has put codes in the place of the random ones, they stay.

        Raises:
            ValueError: there is no finite vector.
        """
        check_untransformed()
        cosine = self.metric == "cosine"
        self.set_codebook(kmeans_of_ranks(vectors, mask, self.codebook, self._start, cosine))

    @torch.no_grad()
    def learn(self, *batches: Batch) -> None:
        """Follows the vectors of ``batches`` taken together, then revives dead codes.

        No vectors move nothing, and a code that was given one with a NaN or an infinity sits the step out.
        """
        check_untransformed()
        counts = ranks.total(reduce(torch.add, (batch.counts for batch in batches)))
        counts = counts.to(self.ema_counts.dtype)
        total = counts.sum(-1, keepdim=True)
        if self.decay is None:
            self.ema_counts.lerp_(counts, (1 - USAGE_DECAY) * (total > 0).to(counts.dtype))
        else:
            sums = ranks.total(reduce(torch.add, (batch.sums for batch in batches)))
            self._follow(counts, sums, total, self.decay)
        if self.revive_below:
            masks = [batch.mask for batch in batches if batch.mask is not None]
            mask = torch.stack(masks, 1).flatten() if masks else None
            # vector by vector, not batch by batch: so ranks in a row are the joined batch
            vectors = [batch.vectors for batch in batches if batch.vectors is not None]
            self._revive(torch.stack(vectors, 1).flatten(0, 1), mask, total)

    def _follow(self, counts: Tensor, sums: Tensor, total: Tensor, decay: float) -> None:
        """One step of the exponential moving average (van den Oord et al. 2017, appendix A.1).

        ``N_k <- g N_k + (1 - g) n_k``, ``m_k <- g m_k + (1 - g) sum z_e``, ``e_k = m_k / N_k`` with the
        counts smoothed as in ``_average``.
        """
        codebook, averages = self.codebook, (self.ema_counts.unsqueeze(-1), self.ema_sums)
        self._notice(codebook, *averages)
        bad = (sums * 0).sum(-1, keepdim=True) != 0  # a NaN or an infinity, in fewer passes than isfinite
        rate = (total.clamp(max=1) * (1 - decay)).unsqueeze(-1).masked_fill(bad, 0)
        averages[0].lerp_(counts.unsqueeze(-1), rate)
        averages[1].lerp_(sums.masked_fill(bad, 0).to(rate.dtype), rate)
        codebook.copy_(self._average(*averages)[0])

    def _average(self, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The codes that a moving average of ``counts (K, 1)`` and ``sums (K, D)`` says, and the counts
        smoothed to ``(N_k + eps) / (N + K eps) * N``.
        """
        seen = counts.sum(-2, keepdim=True)
        smoothed = (counts + self.eps).mul_(seen / (seen + self.num_embeddings * self.eps))
        codes = sums / smoothed
        return unit(codes) if self.metric == "cosine" else codes, smoothed

    def _notice(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Lets the average go on from code vectors that aren't its own."""
        codes, smoothed = self._average(counts, sums)
        codes = codes.to(codebook.dtype)
        if codes.is_cpu and not torch.compiler.is_compiling() and torch.equal(codes, codebook):
            return  # fewer passes; elsewhere to ask would wait for the device
        own = (codes == codebook).all(-1, keepdim=True)
        sums.copy_(torch.where(own, sums, codebook * smoothed))

    def _revive(self, vectors: Tensor, mask: Tensor | None, total: Tensor) -> None:
        """Puts random vectors in the place of codes whose average count is below the threshold.

        Where ``total``, the number of vectors, doesn't let all codes reach that, it is ``REACHABLE``.
        """
        self._warn(vectors)
        mean = total / self.num_embeddings
        below = torch.where(mean < self.revive_below, REACHABLE * mean, self.revive_below)
        fresh = ranks.sample(vectors, mask, self.num_embeddings)  # (K, C, D)
        fresh = fresh.to(self.codebook.dtype).transpose(0, 1).reshape(self.codebook.shape)
        dead = (self.ema_counts < below) & fresh.isfinite().all(-1)
        write(self, "codebook", fresh, dead.unsqueeze(-1).expand_as(fresh))
        self.ema_counts.copy_(torch.where(dead, self._fresh_count, self.ema_counts))
        if self.decay is not None:
            self.ema_sums.copy_(torch.where(dead.unsqueeze(-1), fresh * self._fresh_count, self.ema_sums))

    def _warn(self, vectors: Tensor) -> None:
        """Says once that so many vectors of each rank are too few for the threshold of revival."""
        if self._warned or torch.compiler.is_compiling():
            return
        num = len(vectors) * ranks.world()
        if 0 < num < self.revive_below * self.num_embeddings:
            self._warned = True
            mean = f"{num / self.num_embeddings:.3g} for each of {self.num_embeddings} codes"
            warnings.warn(
                f"revive_below is {self.revive_below}; {num} vectors a batch are {mean}, so codes below "
                f"{REACHABLE} times that revive",
                stacklevel=2,
            )

    @property
    def _fresh_count(self) -> float:
        """The average count that a new code is given: it isn't dead at once."""
        return max(1.0, self.revive_below)

    def _fresh(self, codebook: Tensor) -> dict[str, Tensor]:
        """The statistics of this module as they start from ``codebook``."""
        wide = torch.promote_types(codebook.dtype, torch.float32)
        counts = torch.full(codebook.shape[:-1], self._fresh_count, dtype=wide, device=codebook.device)
        statistics = {"ema_counts": counts}
        if self.decay is not None:
            statistics["ema_sums"] = codebook.detach().to(wide) * self._fresh_count
        return {name: value for name, value in statistics.items() if name in self._buffers}

    def _mark(self, *, initialised: bool) -> None:
        # beside the buffer in Python, so that later steps are compiled and captured without the start
        self._waits = self.kmeans_init and not initialised
        # what the codes are as long as nobody has put others there
        self._start = gathered(self.codebook.detach()).clone() if self._waits else None
        if self.kmeans_init:
            self.initialised.fill_(float(initialised))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        """Moves and converts the module; the average never to less than float32."""
        before = {name: value for name, value in self.named_buffers(recurse=False) if name != "codebook"}
        super()._apply(fn, recurse)
        for name, value in before.items():
            after = getattr(self, name)
            narrow = after.dtype.itemsize < 4 or name == "initialised"
            if narrow and after.dtype != value.dtype:
                self._buffers[name] = value.to(after.device, torch.float32)
        if self._start is not None:
            self._start = fn(self._start)
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Code vectors that somebody has put in the place of the random start are a start."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        start = None if self.codebook.is_meta else self._start
        if start is not None and (gathered(self.codebook.detach()) != start).any():
            destination[prefix + "initialised"] = torch.ones_like(self.initialised)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        """Takes a state that was saved with other options too."""
        names = {prefix + name for name in (*STATISTICS, "initialised")}
        own = {name for name in names if name.removeprefix(prefix) in self._buffers}
        state = {name: value for name, value in state_dict.items() if name not in names - own}
        for name in own & state.keys():  # with assign=True the tensor itself is taken
            state[name] = state[name].to(torch.promote_types(state[name].dtype, torch.float32))
        codebook = state.get(prefix + "codebook")
        if isinstance(codebook, Tensor) and codebook.shape == self.codebook.shape:
            fresh = {**self._fresh(codebook), "initialised": torch.ones((), device=codebook.device)}
            state |= {name: fresh[name.removeprefix(prefix)] for name in own - state.keys()}
        super()._load_from_state_dict(state, prefix, *args)
        if codebook is not None and self.kmeans_init and not self.initialised.is_meta:
            self._mark(initialised=bool(self.initialised))
