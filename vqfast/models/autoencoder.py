"""What all models share: names, sizes, checks of inputs, and codes by level."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vqfast.checks import check_choice, check_device, check_tensor
from vqfast.functional.autocast import autocast_dtype
from vqfast.saving import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Self


def axes(first: str, ndim: int) -> str:
    """How errors word a shape."""
    return f"({first}, {('T', 'H, W', 'T, H, W')[ndim - 1]})"


class Autoencoder(nn.Module, Pretrained):
    """A model from data ``(B, C, *spatial)`` to grids of codes, one for each level, and back.

    ``VQVAE`` has one level, ``HierarchicalVQVAE`` several. What works with both calls ``encode_levels``,
    ``decode_levels``, ``code_shapes``, ``quantizers`` and ``codebook_sizes``; levels are in order from the
    coarsest.

    Attributes:
        in_channels, ndim: C, and the number of spatial axes.
        strides: for each level, how many input positions along an axis one code stands for.
        frame_by_frame: whether each frame of video has codes of its own: then one along the axis of time.
        value_range: the lowest and the highest value that data has.

    Example:
        >>> model: vqfast.models.Autoencoder = vqfast.VQVAE(hidden_channels=8)
        >>> [indices.shape for indices in model.encode_levels(torch.rand(1, 3, 16, 16))]
        [torch.Size([1, 4, 4])]
    """

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {}
    in_channels: int
    ndim: int
    strides: tuple[int, ...]
    frame_by_frame: bool = False
    value_range: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def named(cls, name: str, **overrides: Any) -> Self:
        """The model of ``CONFIGS[name]``, with ``overrides`` in place of some of its arguments.

        Raises:
            TypeError, ValueError: ``name`` isn't one of ``CONFIGS``; or as in the constructor.

        Example:
            >>> vqfast.VQVAE.named("paper-speech-mirrored", hidden_channels=16).code_shape((6400,))
            (100,)
        """
        check_choice("name", name, cls.CONFIGS)
        return cls(**{**cls.CONFIGS[name], **overrides})

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for ``device`` and ``dtype``."""

    @property
    @abstractmethod
    def quantizers(self) -> tuple[nn.Module, ...]:
        """The quantiser of each level."""

    @abstractmethod
    def encode_levels(self, x: Tensor) -> list[Tensor]:
        """The codes of ``x``, int64 ``(B, *shape)`` for each of ``code_shapes(spatial)``."""

    @abstractmethod
    def decode_levels(self, indices: Sequence[Tensor]) -> Tensor:
        """``(B, C, *spatial)``, what the decoder makes of the codes of all levels, or of the coarsest."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        sizes: Any = self.quantizers
        return tuple(quantizer.num_embeddings for quantizer in sizes)

    @property
    def stride(self) -> int:
        """Every spatial size of an input must be a multiple of it; the number of frames if time is halved."""
        return self.strides[0]

    def code_shapes(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """The spatial shape of each level's codes, for inputs ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``spatial`` isn't a sequence of integers.
            ValueError: the model doesn't take that size.

        Example:
            >>> vqfast.VQVAE(hidden_channels=32).code_shapes((32, 64))
            [(8, 16)]
        """
        if not isinstance(spatial, Sequence) or not all(
            isinstance(size, Integral) and not isinstance(size, bool) for size in spatial
        ):
            raise TypeError(f"spatial is {spatial!r}; want {self._spatial}")
        self._check_spatial(spatial)
        kept = int(self.frame_by_frame)
        return [(*spatial[:kept], *(size // stride for size in spatial[kept:])) for stride in self.strides]

    @property
    def _spatial(self) -> str:
        frames = "a positive number of frames and " if self.frame_by_frame else ""
        axes = self.ndim - self.frame_by_frame
        return f"{frames}{axes} positive multiples of the stride {self.stride}"

    def _check_spatial(self, spatial: Sequence[int]) -> None:
        # no check of types, as traced sizes are tensors
        halved = spatial[int(self.frame_by_frame) :]
        if len(spatial) != self.ndim or spatial[0] < 1 or any(n < 1 or n % self.stride for n in halved):
            raise ValueError(f"spatial is {tuple(spatial)}; want {self._spatial}")

    def _check_input(self, x: Tensor) -> None:
        check_tensor("x", x)
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; want a floating-point one")
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels or x.shape[0] == 0:
            wanted = axes(f"B, {self.in_channels}", self.ndim)
            raise ValueError(f"x has shape {tuple(x.shape)}; want {wanted}, not empty")
        parameter = next(self.parameters())
        if x.dtype != parameter.dtype and autocast_dtype(x) is None:
            raise TypeError(f"x has dtype {x.dtype}; want the model's, {parameter.dtype}")
        check_device("x", x, "the model", parameter.device)
        self._check_spatial(x.shape[2:])
