"""What every prior over grids of codes can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import check_device, check_indices, check_integer
from vqfast.nn.calls import typed_as
from vqfast.sampling import mixture
from vqfast.sampling.batches import Options, as_labels, axes_of, sample_batches
from vqfast.sampling.program import Program
from vqfast.sampling.request import Given, GivenLabels
from vqfast.saving import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CausalPrior(nn.Module, Pretrained):
    """An autoregressive model of grids of codes: ``p(codes) = product of p(code | earlier codes)``.

    Earlier means earlier in raster order: row by row, and from left to right in a row. A kind of prior
    defines ``grid_logits`` and ``lower``.

    Args:
        num_embeddings: K, the number of codes.
        num_classes: number of class labels that condition the prior; ``None`` for none.
        condition_channels: channels of a map on the codes' grid that conditions the prior; 0 for none.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range.
    """

    ndim = 2
    num_quantizers: int | None = (
        None  # codes of a position, the last axis of codes; None: one, without an axis
    )
    num_mixtures: int | None = None  # of logistics that codes are drawn from; None: from logits

    def __init__(self, num_embeddings: int, num_classes: int | None, condition_channels: int) -> None:
        super().__init__()
        check_integer("num_embeddings", num_embeddings)
        check_integer("num_classes", num_classes, optional=True)
        check_integer("condition_channels", condition_channels, 0)
        self.num_embeddings, self.num_classes = num_embeddings, num_classes
        self.condition_channels = condition_channels

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """Logits of checked inputs; a prior of sequences has ``H = 1``.

        Args:
            codes: int64 ``(B, H, W)``; ``(B, H, W, S)`` if the prior has ``num_quantizers``.
            labels: int64 ``(B,)``, or ``None``.
            condition: ``(B, condition_channels, H, W)`` in the prior's dtype, or ``None``.

        Returns:
            ``(B, K, H, W)``, or ``(B, K, H, W, S)``.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no grid_logits")

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """The sampling program, and the weights that it names in the prior's dtype and on its device."""
        raise NotImplementedError(f"{type(self).__name__} defines no lower")

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """The user's condition as ``grid_logits`` takes it, ``(B, condition_channels, H, W)``."""
        return condition.to(next(self.parameters())).reshape(condition.shape[0], -1, *grid)

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """The map that the program reads as ``CONDITION``, see ``Request``; arguments as ``grid_logits``."""
        return condition

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments but device and dtype; a kind of prior adds its own."""
        names = ("num_embeddings", "num_classes", "condition_channels")
        return {name: getattr(self, name) for name in names}

    def check_known(self, known: Given) -> None:
        """Raises ValueError if a code that the prior can't draw isn't known."""

    def condition_shape(self, num: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the condition of ``num`` grids; ``None`` if the prior takes no condition."""
        return (num, self.condition_channels, *shape) if self.condition_channels else None

    def check_conditioning(
        self, num: int, shape: tuple[int, ...], labels: GivenLabels, condition: Given
    ) -> None:
        """Checks labels and condition of ``num`` grids; of a function only that the prior takes the argument.

        Raises:
            TypeError: labels or condition have another type.
            ValueError: one is missing, isn't taken by this prior, has another shape or is out of range.
        """
        if not callable(labels):
            labels = as_labels(labels, num)
        if labels is None and self.num_classes is not None:
            raise ValueError(
                f"labels is None; want integers in 0..{self.num_classes - 1}, since the prior has "
                f"{self.num_classes} classes"
            )
        if labels is not None and self.num_classes is None:
            raise ValueError("labels is given; want None, since the prior has no classes")
        if labels is not None and self.num_classes is not None and not callable(labels):
            check_indices("labels", labels, self.num_classes)
            if labels.shape != (num,):
                raise ValueError(f"labels has shape {tuple(labels.shape)}; want ({num},)")
        size = self.condition_shape(num, shape)
        if callable(condition) and size is not None:
            return
        if condition is not None and not isinstance(condition, Tensor):
            raise TypeError(f"condition is a {type(condition).__name__}; want a tensor")
        given = None if condition is None else tuple(condition.shape)
        if given != size:
            raise ValueError(f"condition has shape {given}; want {size}")

    def forward(
        self, indices: Tensor, labels: Tensor | int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Logits of every code, given the earlier codes.

        Args:
            indices: integer codes ``(B, H, W)``, ``(B, T)`` for a prior of sequences, in ``0..K - 1``. If the
                prior has ``num_quantizers``, a last axis has the codes of each position.
            labels: integer ``(B,)`` or one integer for all, in ``0..num_classes - 1``, if the prior has
                classes.
            condition: floating ``(B, condition_channels, H, W)``, if the prior takes a map.

        Returns:
            ``(B, K, H, W)``, or ``(B, K, T)``; the logits at a position are for the code there. A last axis
            is that of the codes. If the prior has ``num_mixtures`` M, ``3 M`` parameters of mixtures.

        Raises:
            TypeError: indices or labels aren't integers.
            ValueError: a shape is wrong, a value out of range, or a tensor on another device than the prior.

        >>> prior = vqfast.PixelCNN(16, channels=8, num_layers=2, num_classes=10)
        >>> codes = torch.zeros(4, 3, 5, dtype=torch.int64)
        >>> prior(codes, labels=7).shape
        torch.Size([4, 16, 3, 5])
        """
        check_indices("indices", indices, self.num_embeddings)
        axes = axes_of(self)
        num, shape = len(indices) if indices.ndim else 0, tuple(indices.shape[1 : self.ndim + 1])
        if indices.shape != (num, *shape, *axes) or len(shape) < self.ndim or indices.numel() == 0:
            sizes = ", ".join((f"{self.ndim} sizes", *map(str, axes)))
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want (B, {sizes}), not empty")
        labels = as_labels(labels, num, indices.device)
        self.check_conditioning(num, shape, labels, condition)
        device = next(self.parameters()).device
        for name, tensor in (("indices", indices), ("labels", labels), ("condition", condition)):
            if tensor is not None:
                check_device(name, tensor, "the prior's weights", device)
        grid = (math.prod(shape[:-1]), shape[-1])  # a sequence is a grid of one row
        logits = self.grid_logits(
            indices.long().reshape(-1, *grid, *axes),
            None if labels is None else labels.long(),
            None if condition is None else self.on_grid(condition, grid),
        )
        return logits.reshape(-1, logits.shape[1], *shape, *axes)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """How many bits each code takes: the mean of ``-log2 p(code | earlier codes)`` over a grid's codes.

        Args:
            indices: see ``forward``; -1 after the end of an item, where nothing counts.
            labels, condition: see ``forward``.

        Returns:
            ``(B,)``, in bits.

        Raises:
            TypeError, ValueError: see ``forward``.

        >>> prior = vqfast.PixelCNN(16, channels=8, num_layers=2).requires_grad_(False)
        >>> for parameter in prior.head.parameters():
        ...     _ = parameter.zero_()
        >>> prior.bits_per_code(torch.zeros(2, 3, 5, dtype=torch.int64))  # of 16 codes that are as likely
        tensor([4.0000, 4.0000])
        """
        check_indices("indices", indices, self.num_embeddings, minimum=-1)
        logits, codes = self(indices.clamp(min=0), labels, condition), indices.long()
        if self.num_mixtures is None:
            nats = F.cross_entropy(logits, codes, ignore_index=-1, reduction="none")
        else:
            nats = mixture.nats(logits, codes, self.num_embeddings, several=self.num_quantizers is not None)
        return nats.flatten(1).sum(1) / math.log(2) / (indices >= 0).flatten(1).sum(1)

    def sample(
        self,
        num: int,
        shape: tuple[int, ...],
        *,
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        known: Tensor | None = None,
        numbers: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        precision: str | None = None,
        method: str = "auto",
        batch_size: int = 256,
        progress: Callable[[int], object] | bool = False,
    ) -> Tensor:
        """Draws grids of codes.

        Sample ``i`` of a seed is the same for every batch size, device and method, as long as their logits
        agree to rounding. Tensors on another device are copied to the prior's.

        Args:
            num: how many grids.
            shape: ``(H, W)``, or ``(T,)`` for a prior of sequences.
            labels: integer ``(num,)`` or one integer for all, in ``0..num_classes - 1``.
            condition: floating ``(num, condition_channels, *shape)``.
            known: integer, shaped as the result: codes to keep, -1 where to draw. Later codes depend on a
                kept one, earlier codes can't.
            numbers: integer ``(num,)``: which samples of the seed to draw; ``0..num - 1`` by default.
            temperature: divides the logits, up to 1e300; 0 takes the most likely code.
            top_k: keeps the k most likely codes and those that tie with the last of them.
            top_p: keeps the fewest codes, the most likely first, whose probabilities add up to ``top_p``.
            seed: in ``0..2^64 - 1``.
            precision: ``"bfloat16"`` rounds the factors of products to bfloat16 and sums them in float32:
                faster, but samples differ, see "Less precision" in the docs' page on priors. By default all
                is computed in float32, or in float64 for a float64 prior.
            method: the executor: ``"native"`` (C++), ``"triton"``, ``"torch"``, ``"reference"`` (a whole pass
                of the model for each position), or ``"auto"``, the fastest that runs here.
            batch_size: how many grids at a time; halved until a batch fits the memory.
            progress: ``True`` shows a bar (tqdm). A function is called with the number of codes drawn since
                the last call, and with a negative number when a batch that didn't fit begins again.

        Returns:
            int64 ``(num, *shape)``, or ``(num, *shape, num_quantizers)`` if the prior has that.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; or the logits at a position are NaN or have no finite
                maximum. Single logits may be ``-inf``: those codes are never drawn.

        >>> prior = vqfast.PixelCNN(16, channels=8, num_layers=2, num_classes=10)
        >>> codes = prior.sample(3, (4, 6), labels=7, temperature=0.9, seed=1)
        >>> codes.shape, codes.dtype
        (torch.Size([3, 4, 6]), torch.int64)
        >>> last = prior.sample(1, (4, 6), labels=7, temperature=0.9, seed=1, numbers=torch.tensor([2]))
        >>> torch.equal(last[0], codes[2])
        True

        Complete grids whose first two rows are known:

        >>> codes[:, 2:] = -1
        >>> prior.sample(3, (4, 6), labels=7, known=codes).shape
        torch.Size([3, 4, 6])
        """
        batches = self.sample_batches(
            num,
            shape,
            labels=labels,
            condition=condition,
            known=known,
            numbers=numbers,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            precision=precision,
            method=method,
            batch_size=batch_size,
            progress=progress,
        )
        return torch.cat(list(batches))

    def sample_batches(
        self, num: int, shape: tuple[int, ...], **options: Unpack[Options]
    ) -> Iterator[Tensor]:
        """Draws the grids of ``sample`` batch by batch: more of them than fit the memory at once.

        Args:
            num, shape: see ``sample``.
            options: those of ``sample``. Each of ``labels``, ``condition``, ``known`` and ``numbers`` may
                also be a function, which is called with a batch's samples, a ``range`` within
                ``0..num - 1``, and returns their part; of labels also one integer for all of them.

        Returns:
            An iterator of int64 ``(B, *shape)``, with the last axis that ``sample`` has. ``B`` is
            ``batch_size``, less in the last batch and in batches that were split to fit the memory.

        Raises:
            TypeError, ValueError: see ``sample``. What a function returns is checked with its batch.

        >>> prior = vqfast.PixelCNN(16, channels=8, num_layers=2, num_classes=10)
        >>> batches = prior.sample_batches(
        ...     1_000_000, (4, 6), labels=lambda samples: samples.start % 10, batch_size=3
        ... )
        >>> next(batches).shape, next(batches).shape
        (torch.Size([3, 4, 6]), torch.Size([3, 4, 6]))
        """
        return sample_batches(self, num, shape, **options)
