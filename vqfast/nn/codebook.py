"""A codebook: how it starts, how it follows the vectors that it is given, and how its dead codes revive."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqfast.checks import (
    Device,
    check_choice,
    check_device,
    check_flags,
    check_floating,
    check_number,
    check_placement,
)
from vqfast.functional import unit
from vqfast.functional.nearest import METRICS
from vqfast.nn import passes, ranks
from vqfast.nn.batch import Batch, Vectors, side_by_side
from vqfast.nn.kmeans import draw_seed, kmeans_of_ranks
from vqfast.nn.sharded import gathered, write

USAGE_DECAY = 0.9  # of the average counts by which dead codes are found where there is no other average
REVIVE_BELOW = 1.0  # by default: a code that has less than one vector a batch
REACHABLE = 0.25  # of the mean count: the threshold of revival where ``revive_below`` exceeds that mean
STATISTICS = ("ema_counts", "ema_sums")


class Kept(NamedTuple):
    """What the recomputation of a forward pass by a checkpoint needs, as that pass has moved the codebook.

    Attributes:
        codebook: the codebook that the pass used.
        started, revived: whether the pass drew random numbers for a k-means start, or for a revival.
    """

    codebook: Tensor
    started: bool
    revived: bool


class Codebook(nn.Module):
    """Code vectors that learn by gradients or by a moving average; see ``VQLayer`` for the options.

    Under torch.distributed a batch is the joined batch of all ranks, so that codebooks that were equal on all
    ranks stay equal to the bit.

    The moving average is kept in float32, or in float64 after ``double()``, whatever the dtype of the module.
    Code vectors that are copied or loaded into ``codebook`` stay: the average goes on from them, and no
    k-means start overwrites them. A state of a layer with other options loads: entries that this layer has no
    use for are ignored, and entries that are missing start anew from the loaded codebook.

    Args:
        shape: ``(K, D)``, or ``(C, K, D)`` for codebooks side by side.

    Attributes:
        codebook: of that shape; a parameter, or with ``decay`` a buffer.
        ema_counts: with ``decay`` or ``revive_below``, the moving average of the counts, ``shape[:-1]``.
        ema_sums: with ``decay``, the moving average of the sums, ``shape``.
        initialised: with ``kmeans_init``, 0 until the code vectors have left their random start, then 1. It
            is a float32 scalar so that averages of models can be taken.
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    initialised: Tensor
    _waits: bool

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
        check_choice("metric", metric, METRICS)
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
        Codebook.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the code vectors uniformly from ``-1 / K`` to ``1 / K`` and restarts the moving average.

        With ``kmeans_init`` the next batch in training starts them again.
        """
        bound = 1 / self.num_embeddings
        codebook = self.codebook
        drawn = torch.empty(codebook.shape, dtype=codebook.dtype, device=codebook.device)
        self.set_codebook(drawn.uniform_(-bound, bound))
        self._mark(initialised=False)

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Replaces the code vectors and restarts the moving average from them.

        Args:
            codebook: floating point ``(K, D)``, or ``(heads, K, D)`` for separate codebooks, on the device of
                the layer. It is converted to the layer's dtype, and with the cosine metric to length 1.

        Raises:
            TypeError: ``codebook`` isn't a floating-point tensor.
            ValueError: it has another shape or is on another device.
        """
        check_floating(codebook=codebook)
        check_device("codebook", codebook, "the layer", self.codebook.device)
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want {tuple(self.codebook.shape)}")
        codebook = codebook.to(self.codebook.dtype)
        codebook = unit(codebook).to(codebook.dtype) if self.metric == "cosine" else codebook
        write(self, "codebook", codebook)
        for name, value in self._fresh(codebook).items():
            getattr(self, name).copy_(value)
        self._mark(initialised=True)

    def freeze(self, frozen: bool = True) -> None:
        """Stops the code vectors from learning and reviving; with ``frozen=False`` lets them again.

        Raises:
            TypeError: ``frozen`` isn't a bool.
        """
        check_flags(frozen=frozen)
        self.learnable = not frozen
        if self.decay is None:
            self.codebook.requires_grad_(self.learnable)

    def held(self, kept: Kept | None = None) -> Tensor:
        """The codebook of this pass, or of the pass that ``kept`` is from, with the codebook's gradient."""
        if kept is None:
            return self.codebook
        return kept.codebook + (self.codebook - self.codebook.detach())

    def code_vectors(self, kept: Kept | None = None) -> Tensor:
        """The code vectors that this pass compares with: of length 1 with the cosine metric, and a copy where
        they may move in place while backward still needs them.
        """
        moves = kept is None and (self.decay is not None or self.revive_below)
        codebook = passes.once(self.codebook.clone(), self.follows) if moves else self.held(kept)
        return unit(codebook) if self.metric == "cosine" else codebook

    @property
    def follows(self) -> bool:
        """Whether a forward pass calls ``learn``."""
        return self.training and self.learnable and bool(self.decay is not None or self.revive_below)

    @property
    def starts(self) -> bool:
        """Whether the next forward pass starts the code vectors by k-means."""
        # DistributedDataParallel may have copied another rank's buffer since the last pass
        if self._waits and not torch.compiler.is_compiling() and not self.initialised.is_meta:
            self._waits = not self.initialised.item()
        return self.training and self._waits

    def keep(self, started: bool) -> Kept:
        """What a recomputation of this pass needs. Call it before ``learn``."""
        return Kept(self.codebook.detach().clone(), started, self.follows and self.revive_below > 0)

    def draw_again(self, kept: Kept) -> None:
        """Draws the random numbers that the kept pass drew, so that later draws are those of that pass."""
        if kept.started:
            draw_seed()
        if kept.revived:
            ranks.noise(self.num_embeddings, self.codebook.device)

    @torch.no_grad()
    def start(self, vectors: Tensor, mask: Tensor | None) -> None:
        """Fits the code vectors to all ranks' ``vectors (N, C, D)`` by k-means; ``mask`` as in ``Batch``.

        Code vectors that were put in the place of the random ones stay.

        Raises:
            ValueError: there is no finite vector, or the vectors are on another device.
            RuntimeError: a transform of ``torch.func`` is active.
        """
        passes.refuse_transforms()
        check_device("z_e", vectors, "codebook", self.codebook.device)
        cosine = self.metric == "cosine"
        self.set_codebook(kmeans_of_ranks(vectors, mask, self.codebook, self._start, cosine))
        if self.revive_below:  # the encoder moves fastest now, and few vectors start many codes badly
            shown = torch.tensor(len(vectors), device=vectors.device) if mask is None else mask.sum()
            share = self._limits(ranks.total(shown))[1] / self._fresh_count
            for name in STATISTICS:
                if name in self._buffers:
                    getattr(self, name).mul_(share)

    @torch.no_grad()
    def learn(self, *batches: Batch) -> None:
        """Moves the averages by the vectors of all ``batches`` together, then revives dead codes.

        A batch without vectors changes nothing. A code that was given a vector with a NaN or an infinity
        stays as it is in this step.

        Raises:
            RuntimeError: a transform of ``torch.func`` is active.
        """
        passes.refuse_transforms()
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
            # batches side by side, so that ranks one after the other are the joined batch
            vectors = side_by_side([batch.vectors for batch in batches if batch.vectors is not None])
            self._revive(vectors, mask, total)

    def _follow(self, counts: Tensor, sums: Tensor, total: Tensor, decay: float) -> None:
        """One step of the exponential moving average (van den Oord et al. 2017, appendix A.1).

        ``N_k <- g N_k + (1 - g) n_k``, ``m_k <- g m_k + (1 - g) sum z_e`` and ``e_k = m_k / N_k``, with the
        decay ``g`` and the counts ``N_k`` smoothed as in ``_average``.
        """
        codebook, averages = self.codebook, (self.ema_counts.unsqueeze(-1), self.ema_sums)
        self._notice(codebook, *averages)
        bad = (sums * 0).sum(-1, keepdim=True) != 0  # finds NaN and infinity in fewer passes than isfinite
        rate = (total.clamp(max=1) * (1 - decay)).unsqueeze(-1).masked_fill(bad, 0)
        averages[0].lerp_(counts.unsqueeze(-1), rate)
        averages[1].lerp_(sums.masked_fill(bad, 0).to(rate.dtype), rate)
        codebook.copy_(self._average(*averages)[0])

    def _average(self, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The code vectors of a moving average of ``counts (K, 1)`` and ``sums (K, D)``, and the smoothed
        counts, ``(N_k + eps) / (N + K eps) * N``.
        """
        seen = counts.sum(-2, keepdim=True)
        smoothed = (counts + self.eps).mul_(seen / (seen + self.num_embeddings * self.eps))
        means = sums / smoothed
        return unit(means) if self.metric == "cosine" else means, smoothed

    def _notice(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Sets the sums of code vectors that were put into ``codebook`` from outside, so that the average
        goes on from them.
        """
        means, smoothed = self._average(counts, sums)
        means = means.to(codebook.dtype)
        if means.is_cpu and not torch.compiler.is_compiling() and torch.equal(means, codebook):
            return  # saves passes on a CPU; elsewhere the question would wait for the device
        own = (means == codebook).all(-1, keepdim=True)
        sums.copy_(torch.where(own, sums, codebook * smoothed))

    def _revive(self, vectors: Vectors, mask: Tensor | None, total: Tensor) -> None:
        """Replaces codes whose average count is below the threshold by random vectors."""
        self._warn(vectors.num)
        below, count = self._limits(total)
        dead = self.ema_counts < below
        drawn = ranks.noise(self.num_embeddings, dead.device)
        if dead.is_cpu and not torch.compiler.is_compiling() and not dead.any():
            return  # saves passes on a CPU; elsewhere the question would wait for the device
        fresh = ranks.sample(vectors.num, mask, drawn, vectors.pick)  # (K, C, D)
        fresh = fresh.to(self.codebook.dtype).transpose(0, 1).reshape(self.codebook.shape)
        dead = dead & fresh.isfinite().all(-1)
        write(self, "codebook", fresh, dead.unsqueeze(-1).expand_as(fresh))
        self.ema_counts.copy_(torch.where(dead, count, self.ema_counts))
        if self.decay is not None:
            revived = fresh * count.unsqueeze(-1)
            self.ema_sums.copy_(torch.where(dead.unsqueeze(-1), revived, self.ema_sums))

    def _limits(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The average count below which a code is dead, and that of a new code, of ``total`` vectors a batch.

        The first is ``revive_below``, or ``REACHABLE`` times the mean count where the vectors are too few for
        all codes to reach ``revive_below``. The second is twice that at most, so that a new code that stays
        unused is soon replaced again.
        """
        mean = total / self.num_embeddings
        below = torch.where(mean < self.revive_below, REACHABLE * mean, self.revive_below)
        return below, (2 * below).clamp(max=self._fresh_count)

    def _warn(self, vectors: int) -> None:
        """Warns once where the number of ``vectors``, times the ranks, is too small for ``revive_below``."""
        if self._warned or torch.compiler.is_compiling():
            return
        num = vectors * ranks.world()
        if self.revive_below > REVIVE_BELOW and 0 < num < self.revive_below * self.num_embeddings:
            self._warned = True
            mean = f"{num / self.num_embeddings:.3g} for each of {self.num_embeddings} codes"
            warnings.warn(
                f"revive_below is {self.revive_below}; {num} vectors a batch are {mean}, so codes below "
                f"{REACHABLE} times that revive",
                stacklevel=2,
            )

    @property
    def _fresh_count(self) -> float:
        """The average count that a new code has at most, high enough that the code isn't dead at once."""
        return max(1.0, self.revive_below)

    def _fresh(self, codebook: Tensor) -> dict[str, Tensor]:
        """The moving averages that this module has, as they start from ``codebook``."""
        wide = torch.promote_types(codebook.dtype, torch.float32)
        counts = torch.full(codebook.shape[:-1], self._fresh_count, dtype=wide, device=codebook.device)
        statistics = {"ema_counts": counts}
        if self.decay is not None:
            statistics["ema_sums"] = codebook.detach().to(wide) * self._fresh_count
        return {name: value for name, value in statistics.items() if name in self._buffers}

    def _mark(self, *, initialised: bool) -> None:
        # a Python bool beside the buffer, so that later steps are compiled and captured without the start
        self._waits = self.kmeans_init and not initialised
        # the random start; a codebook that differs from it was put there from outside
        self._start = gathered(self.codebook.detach()).clone() if self._waits else None
        if self.kmeans_init:
            self.initialised.fill_(float(initialised))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        """Moves and converts the module, but keeps the moving average in float32 or wider."""
        before = {name: value for name, value in self.named_buffers(recurse=False) if name != "codebook"}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            after = getattr(self, name)
            narrow = after.dtype.itemsize < 4 or name == "initialised"
            if narrow and after.dtype != value.dtype:
                self._buffers[name] = value.to(after.device, torch.float32)
        if self._start is not None:
            self._start = fn(self._start)
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Saves the module; code vectors that were put in the place of the random start count as a start."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        start = None if self.codebook.is_meta else self._start
        if start is not None and (gathered(self.codebook.detach()) != start).any():
            destination[prefix + "initialised"] = torch.ones_like(self.initialised)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Loads a state, also one of a layer with other options."""
        names = {prefix + name for name in (*STATISTICS, "initialised")}
        own = {name for name in names if name.removeprefix(prefix) in self._buffers}
        state = {name: value for name, value in state_dict.items() if name not in names - own}
        for name in own & state.keys():  # with assign=True the tensor itself is taken
            state[name] = state[name].to(torch.promote_types(state[name].dtype, torch.float32))
        codebook = state.get(prefix + "codebook")
        if isinstance(codebook, Tensor) and codebook.shape == self.codebook.shape:
            fresh = {**self._fresh(codebook), "initialised": torch.ones((), device=codebook.device)}
            state |= {name: fresh[name.removeprefix(prefix)] for name in own - state.keys()}
        super()._load_from_state_dict(state, prefix, *args, **kwargs)
        if codebook is None or not self.kmeans_init or self.initialised.is_meta:
            return
        if self.initialised.isfinite():
            self._mark(initialised=bool(self.initialised))
        else:  # a damaged state stays as it is, so that a check finds it
            self._waits, self._start = False, None
