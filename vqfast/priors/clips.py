"""A prior of clips: each frame's grid of codes, given the frames before it and the action."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import Device, check_device, check_indices, check_integer, check_sizes, check_tensor
from vqfast.nn.calls import typed_as
from vqfast.priors.frame_draws import LoweredOnce, seed_of_frame
from vqfast.priors.frames import FrameNetwork, Memory
from vqfast.priors.layers import check_kernel_size, placement
from vqfast.priors.pixelcnn import PixelCNN
from vqfast.sampling.batches import as_labels, sample_batches
from vqfast.sampling.memory import in_batches
from vqfast.sampling.progress import Tick, check_progress, shown, taken_back
from vqfast.saving import Pretrained
from vqfast.saving.models import loadable


@loadable
class ClipPrior(nn.Module, Pretrained):
    """An autoregressive model of clips of codes ``(B, T, H, W)``, frame after frame.

    A network of the codes of the frames before and of the action that led to a frame makes a map of it; a
    gated ``PixelCNN`` draws the frame's grid given that map, in raster order. Both are trained together.
    When clips are drawn, what the network has computed of earlier frames is kept, so that each frame costs
    as much as the first, whatever came before.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 4.4: frames are generated in the space of
    codes from the first ones and from actions, without decoding any in between.

    Args:
        num_embeddings: K, the number of codes.
        channels, num_layers, kernel_size, first_kernel_size, head_channels, dropout: of the ``PixelCNN``.
        num_actions: how many actions there are; ``None`` for clips without actions.
        num_classes: how many labels clips have; ``None`` for none.
        context_channels: of the network.
        context_blocks: residual blocks of the network, each of which sees one cell farther around.
        context_kernel_size: of kernels, odd, that each action has to move what the last frame has.
        context_frames: how many frames a block reads. The network sees ``1 + context_blocks *
            (context_frames - 1)`` frames before a frame.
        device, dtype: of the parameters, as in ``torch.nn``.

    Attributes:
        network, prior: the two parts.
        ndim: 3, the axes of a clip of codes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    >>> small = {"channels": 8, "num_layers": 2, "context_channels": 8, "context_blocks": 2}
    >>> from vqfast.priors import ClipPrior
    >>> prior = ClipPrior(16, num_actions=3, **small)
    >>> clips = torch.zeros(2, 4, 3, 5, dtype=torch.int64)
    >>> prior(clips, actions=torch.ones(2, 4, dtype=torch.int64)).shape
    torch.Size([2, 16, 4, 3, 5])
    >>> drawn = prior.sample(2, (7, 3, 5), actions=torch.ones(2, 7, dtype=torch.int64), known=clips)
    >>> drawn.shape, torch.equal(drawn[:, :4], clips)
    (torch.Size([2, 7, 3, 5]), True)
    """

    ndim = 3

    def __init__(
        self,
        num_embeddings: int = 512,
        channels: int = 64,
        num_layers: int = 15,
        *,
        num_actions: int | None = None,
        num_classes: int | None = None,
        context_channels: int = 64,
        context_blocks: int = 4,
        context_frames: int = 2,
        context_kernel_size: int = 7,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int = 512,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("num_actions", num_actions, optional=True)
        check_sizes(context_channels=context_channels, context_frames=context_frames)
        check_integer("context_blocks", context_blocks, 0)
        check_kernel_size("context_kernel_size", context_kernel_size)
        factory = placement(device, dtype)
        own: dict[str, Any] = {
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
            "dropout": dropout,
        }
        self.prior = PixelCNN(
            num_embeddings,
            channels,
            num_layers,
            num_classes=num_classes,
            condition_channels=context_channels,
            **own,
            **factory,
        )
        self.network = FrameNetwork(
            num_embeddings,
            context_channels,
            context_blocks,
            context_frames,
            context_kernel_size,
            num_actions,
            **factory,
        )
        self.num_embeddings, self.num_actions, self.num_classes = num_embeddings, num_actions, num_classes
        self._config = {
            "num_embeddings": num_embeddings,
            "channels": channels,
            "num_layers": num_layers,
            "num_actions": num_actions,
            "num_classes": num_classes,
            "context_channels": context_channels,
            "context_blocks": context_blocks,
            "context_frames": context_frames,
            "context_kernel_size": context_kernel_size,
            **own,
        }

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for ``device`` and ``dtype``."""
        return dict(self._config)

    @torch.no_grad()
    def start_from(self, codebook: Tensor) -> None:
        """Lets codes whose code vectors are alike start alike: in the embeddings and in the last layer.

        Random projections of the code vectors take the place of random weights, which a training without it
        starts with. It learns sooner.

        Args:
            codebook: floating ``(K, D)``, as ``VQLayer.codebook``.

        Raises:
            TypeError: it isn't a tensor.
            ValueError: it has another number of code vectors.
        """
        if check_tensor("codebook", codebook).ndim != 2 or len(codebook) != self.num_embeddings:
            raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want ({self.num_embeddings}, D)")
        like = next(self.parameters())
        vectors = codebook.to(like) - codebook.to(like).mean(0)
        vectors = vectors / vectors.norm(dim=1).mean().clamp(min=1e-12)
        head: Any = self.prior.head
        last = head[-1].weight
        embedding: Any = self.prior.embedding
        for weight, scale in (
            (self.network.embedding.weight[:-1], 1.0),
            (embedding.weight, 1.0),
            (last.flatten(1), last.shape[1] ** -0.5),
        ):
            projection = torch.randn(vectors.shape[1], weight.shape[1], device=like.device, dtype=like.dtype)
            weight.copy_(scale * vectors @ projection)

    def forward(
        self, indices: Tensor, labels: Tensor | int | None = None, *, actions: Tensor | None = None
    ) -> Tensor:
        """Logits of every code, given the earlier ones of its frame and all of the frames before.

        Args:
            indices: integer codes ``(B, T, H, W)`` in ``0..K - 1``.
            labels: integer ``(B,)`` or one integer for all, if the prior has ``num_classes``.
            actions: integer ``(B, T)``, the action that led to each frame, in ``0..num_actions - 1``; -1
                where it isn't known. If the prior has ``num_actions``.

        Returns:
            ``(B, K, T, H, W)``; the logits at a position are for the code there.

        Raises:
            TypeError: a tensor isn't one of integers.
            ValueError: a shape is wrong, a value out of range, or a tensor on another device than the prior.
        """
        check_indices("indices", indices, self.num_embeddings)
        if indices.ndim != 4 or indices.numel() == 0:
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want (B, T, H, W), not empty")
        num, frames = indices.shape[:2]
        labels = as_labels(labels, num, indices.device)
        self.prior.check_conditioning(num, (), labels, lambda samples: indices)
        self._check_actions(actions, (num, frames))
        device = next(self.parameters()).device
        for name, tensor in (("indices", indices), ("labels", labels), ("actions", actions)):
            if tensor is not None:
                check_device(name, tensor, "the prior's weights", device)
        codes = indices.long()
        maps, _ = self.network(self._before(codes), None if actions is None else actions.long())
        logits: Tensor = self.prior(
            codes.flatten(0, 1),
            None if labels is None else labels.repeat_interleave(frames),
            maps.flatten(0, 1),
        )
        by_frame: Tensor = logits.unflatten(0, (num, frames))
        return by_frame.transpose(1, 2)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, *, actions: Tensor | None = None
    ) -> Tensor:
        """How many bits each code takes, ``-log2 p(code | earlier codes)``, as the mean of each clip.

        Args:
            indices: see ``forward``; -1 after the end of a clip, where nothing counts.
            labels, actions: see ``forward``.

        Returns:
            ``(B,)``, in bits.

        Raises:
            TypeError, ValueError: see ``forward``.
        """
        return self._mean_bits(indices, labels, actions, 1)

    def bits_per_frame(
        self, indices: Tensor, labels: Tensor | int | None = None, *, actions: Tensor | None = None
    ) -> Tensor:
        """As ``bits_per_code``, as the mean of each frame: ``(B, T)``."""
        return self._mean_bits(indices, labels, actions, 2)

    def _mean_bits(
        self, indices: Tensor, labels: Tensor | int | None, actions: Tensor | None, kept_axes: int
    ) -> Tensor:
        check_indices("indices", indices, self.num_embeddings, minimum=-1)
        logits = self(indices.clamp(min=0), labels, actions=actions)
        nats = F.cross_entropy(logits, indices.long(), ignore_index=-1, reduction="none")
        counted = (indices >= 0).flatten(kept_axes).sum(kept_axes)
        return nats.flatten(kept_axes).sum(kept_axes) / math.log(2) / counted

    @torch.no_grad()
    def sample(
        self,
        num: int,
        shape: tuple[int, ...],
        *,
        labels: Tensor | int | None = None,
        actions: Tensor | None = None,
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
        """Draws clips of codes, frame after frame.

        Sample ``i`` of a seed is the same for every batch size, device and method, as long as their logits
        agree to rounding. Each frame has random numbers of its own, which its number and the seed determine.

        Args:
            num: how many clips.
            shape: ``(T, H, W)``.
            labels: integer ``(num,)`` or one integer for all.
            actions: integer ``(num, T)``, see ``forward``.
            known: integer ``(num, T', H, W)`` with ``T'`` up to T: codes of the first frames to keep, -1
                where to draw. Later codes depend on a kept one, earlier codes can't.
            numbers, temperature, top_k, top_p, seed, precision, method, batch_size, progress: see
                ``CausalPrior.sample``.

        Returns:
            int64 ``(num, T, H, W)``.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; or logits are NaN or have no finite maximum.
        """
        sizes = _checked_shape(num, shape)
        check_integer("batch_size", batch_size)
        check_progress(progress)
        check_integer("seed", seed, 0, 2**64 - 1)
        labels = as_labels(labels, num)
        self.prior.check_conditioning(num, sizes[1:], labels, lambda samples: torch.empty(0))
        self._check_actions(actions, (num, sizes[0]))
        if known is not None:
            check_indices("known", known, self.num_embeddings, minimum=-1)
            if (
                known.ndim != 4
                or not 1 <= known.shape[1] <= sizes[0]
                or known[:, 0].shape != (num, *sizes[1:])
            ):
                wanted = f"({num}, 1..{sizes[0]}, {sizes[1]}, {sizes[2]})"
                raise ValueError(f"known has shape {tuple(known.shape)}; want {wanted}")
        if numbers is None:
            numbers = torch.arange(num)
        check_indices("numbers", numbers, 2**63)
        if numbers.shape != (num,):
            raise ValueError(f"numbers has shape {tuple(numbers.shape)}; want ({num},)")
        given = {"labels": labels, "actions": actions, "known": known, "numbers": numbers}
        options: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "precision": precision,
            "method": method,
        }

        def draw(samples: range, tick: Tick) -> Tensor:
            own = {name: None if x is None else x[samples.start : samples.stop] for name, x in given.items()}
            with taken_back(tick) as ticked:
                return self._drawn(len(samples), sizes, **own, options=options, progress=ticked)

        with shown(progress, num * math.prod(sizes)) as tick:
            return torch.cat(list(in_batches(lambda samples: draw(samples, tick), num, batch_size)))

    def _drawn(
        self,
        num: int,
        shape: tuple[int, int, int],
        *,
        labels: Tensor | None,
        actions: Tensor | None,
        known: Tensor | None,
        numbers: Tensor | None,
        options: dict[str, Any],
        progress: Tick,
    ) -> Tensor:
        """One batch of ``sample``."""
        device = next(self.parameters()).device
        actions = None if actions is None else actions.to(device, torch.int64)
        codes = torch.full((num, *shape), -1, device=device)
        if known is not None:
            codes[:, : known.shape[1]] = known.to(device)
        before = self._before(codes[:, :1])
        memory: Memory | None = None
        prior: Any = LoweredOnce(self.prior)
        for frame in range(shape[0]):
            led = None if actions is None else actions[:, frame : frame + 1]
            maps, memory = self.network(before, led, memory)
            own = codes[:, frame]
            if (own < 0).any():
                (own,) = sample_batches(
                    prior,
                    num,
                    shape[1:],
                    labels=labels,
                    condition=maps[:, 0],
                    known=own,
                    numbers=numbers,
                    batch_size=num,
                    progress=progress,
                    **{**options, "seed": seed_of_frame(options["seed"], frame)},
                )
            else:
                progress(own.numel())
            codes[:, frame] = own
            before = own.unsqueeze(1)
        return codes

    def _before(self, codes: Tensor) -> Tensor:
        """For each frame the codes of the frame before it, ``(B, T, H, W)``; K before the first."""
        none = torch.full_like(codes[:, :1], self.num_embeddings)
        return torch.cat([none, codes[:, :-1]], 1)

    def _check_actions(self, actions: Tensor | None, shape: tuple[int, int]) -> None:
        if actions is None and self.num_actions is not None:
            raise ValueError(
                f"actions is None; want integers in -1..{self.num_actions - 1}, since the prior has "
                f"{self.num_actions} actions"
            )
        if actions is None:
            return
        if self.num_actions is None:
            raise ValueError("actions is given; want None, since the prior has no actions")
        check_indices("actions", actions, self.num_actions, minimum=-1)
        if tuple(actions.shape) != shape:
            raise ValueError(f"actions has shape {tuple(actions.shape)}; want {shape}")


def _checked_shape(num: int, shape: Sequence[int]) -> tuple[int, int, int]:
    """``(T, H, W)``, if ``num`` and ``shape`` are positive integers."""
    check_integer("num", num)
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape is {shape!r}; want (T, H, W)")
    for size in shape:
        check_integer(f"a size of shape {tuple(shape)}", size)
    if len(shape) != 3:
        raise ValueError(f"shape is {tuple(shape)}; want (T, H, W)")
    return shape[0], shape[1], shape[2]
