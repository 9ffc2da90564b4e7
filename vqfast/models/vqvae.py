"""VQ-VAE models: an encoder, a quantiser and a decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from vqfast.checks import (
    Device,
    check_choice,
    check_integer,
    check_number,
    check_placement,
    check_tensor,
)
from vqfast.models.architectures import ARCHITECTURES, check_ndim, chosen
from vqfast.models.autoencoder import Autoencoder, axes
from vqfast.models.configs import CONFIGS
from vqfast.models.in_place import relus_in_place
from vqfast.models.likelihood import logistic_mixture_mean, logistic_mixture_nats, mixture_channels
from vqfast.models.quantizers import LayerOptions, given_quantizer, make_layer, quantizer_config
from vqfast.models.video import FrameByFrame, network_axes
from vqfast.nn.calls import typed_as
from vqfast.nn.sharded import whole
from vqfast.nn.vq import VQLayer
from vqfast.saving.models import loadable

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class VQVAEOutput(NamedTuple):
    """What a ``VQVAE`` returns.

    Attributes:
        reconstruction: the decoder's output, or the mean of its likelihood, of the input's shape.
        indices: int64 ``(B, *code_shape)``; heads or stages of the quantiser stand last.
        loss: ``loss_weight`` times the quantiser's, a scalar to add to the reconstruction loss.

    Example:
        >>> out = vqfast.VQVAE(hidden_channels=8)(torch.randn(2, 3, 16, 16))
        >>> out.reconstruction.shape, out.indices.shape, out.loss.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 4, 4]), torch.Size([]))
    """

    reconstruction: Tensor
    indices: Tensor
    loss: Tensor


@loadable
class VQVAE(Autoencoder):
    """A VQ-VAE: audio ``(B, C, T)``, images ``(B, C, H, W)`` or video ``(B, C, T, H, W)`` to codes and back.

    Architectures:

    - ``"paper"``: van den Oord et al. 2017 (arXiv 1711.00937), section 4.1, for ``ndim`` 1 to 3: strided
      convolutions with kernels of width 4, residual blocks, and the mirror image as decoder.
      ``CONFIGS["paper-speech-mirrored"]`` has the paper's speech encoder, 64 times shorter, with the mirror
      image as decoder; ``models.SpeechVQVAE`` has the paper's WaveNet. ``CONFIGS["paper-video"]`` makes a
      grid of codes of each frame, ``CONFIGS["paper-video-halved"]`` halves time as often as height and width.
    - ``"keras"``: the Keras example "Vector-Quantized Variational Autoencoders".
    - ``"ruseckas"``: J. Ruseckas' notebook "vq-vae": 3x3 convolutions with batch normalisation, whose width
      doubles after each max-pooling; the output is in 0 to 1. In training the batch normalisation joins the
      batches of all ranks. The notebook's whole loss is
      ``F.mse_loss(out.reconstruction, x) + out.loss``, with the ``loss_weight`` 0.1 of
      ``CONFIGS["ruseckas"]``.

    ``CONFIGS["keras"]`` and ``CONFIGS["ruseckas"]`` start their codebooks at random, as their sources do, and
    revive no codes. Images are computed with the channels last in memory, whatever the format of ``x``.

    Args:
        architecture: ``"paper"``, ``"keras"`` or ``"ruseckas"``, see above.
        in_channels: C.
        ndim: the number of spatial axes; 2 for ``"keras"`` and ``"ruseckas"``.
        frame_by_frame: each frame of video is an image for the architecture, and has a grid of codes of its
            own. Otherwise time is halved like height and width.
        hidden_channels: the width of the widest layer; ``None`` for 256, or 64 for ``"keras"``, 512 for
            ``"ruseckas"``.
        num_downsamplings: how many times every axis is halved; ``None`` for 2, or 5 for ``"ruseckas"``.
        num_residual_blocks: ``None`` for 2 in ``"paper"``; the others have none.
        num_mixtures: of how many logistic distributions the decoder says each value's likelihood, see
            ``models.logistic_mixture_nats``; ``None`` for 0, a decoder without a likelihood. ``"ruseckas"``
            has none.
        loss_weight: what the quantiser's loss is multiplied by in ``VQVAEOutput.loss``.
        num_embeddings, embedding_dim: of the ``VQLayer``; ``None`` for 512 and 64.
        quantizer: a module in place of the ``VQLayer``, which then has all options of quantising:
            a ``VQLayer``, a ``ResidualVQLayer``, or one of your own. That needs the attributes
            ``num_embeddings`` and ``embedding_dim``, ``forward(z_e)`` that returns
            ``(quantized, indices, loss)`` for ``z_e (B, D, *spatial)``, ``encode(z_e)`` that returns the
            indices, and ``decode(indices)`` that returns vectors ``(B, D, *spatial)``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.
        options: all other options of ``VQLayer`` but ``channel_dim``, see ``LayerOptions``.

    Attributes:
        encoder, vq, decoder: the three modules. Type checkers take ``vq`` for a ``VQLayer``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or doesn't go with the architecture.

    Example:
        >>> model = vqfast.VQVAE(hidden_channels=32, decay=0.99, kmeans_init=True)
        >>> reconstruction, indices, loss = model(torch.rand(1, 3, 32, 32))
        >>> reconstruction.shape, indices.shape
        (torch.Size([1, 3, 32, 32]), torch.Size([1, 8, 8]))
        >>> model = vqfast.VQVAE(hidden_channels=32, quantizer=vqfast.ResidualVQLayer(64, 16, 4))
        >>> model(torch.rand(1, 3, 32, 32)).indices.shape
        torch.Size([1, 8, 8, 4])
    """

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = CONFIGS

    def __init__(
        self,
        architecture: str = "paper",
        *,
        in_channels: int = 3,
        ndim: int = 2,
        frame_by_frame: bool = False,
        hidden_channels: int | None = None,
        num_downsamplings: int | None = None,
        num_residual_blocks: int | None = None,
        num_mixtures: int | None = None,
        loss_weight: float = 1.0,
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        quantizer: nn.Module | Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        check_choice("architecture", architecture, ARCHITECTURES)
        kind = ARCHITECTURES[architecture]
        check_integer("in_channels", in_channels)
        network_ndim = network_axes(ndim, frame_by_frame)
        check_ndim(network_ndim, kind.ndims, architecture)
        sizes = chosen(
            f"architecture {architecture!r}",
            kind.defaults,
            hidden_channels=hidden_channels,
            num_downsamplings=num_downsamplings,
            num_residual_blocks=num_residual_blocks,
            num_mixtures=num_mixtures,
        )
        check_number("loss_weight", loss_weight, minimum=0)
        check_integer("num_embeddings", num_embeddings, optional=True)
        check_integer("embedding_dim", embedding_dim, optional=True)
        own = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim, **options}
        self._has_own_quantizer = quantizer is not None
        self.architecture, self.in_channels, self.ndim, self.sizes = architecture, in_channels, ndim, sizes
        self.loss_weight, self.frame_by_frame = loss_weight, frame_by_frame
        self.strides = (2 ** sizes["num_downsamplings"],)
        with nullcontext() if device is None else torch.device(device):
            if quantizer is None:
                self.vq = make_layer(
                    512 if num_embeddings is None else num_embeddings,
                    64 if embedding_dim is None else embedding_dim,
                    options,
                )
                if kind.codebook_bound is not None and not self.vq.kmeans_init:
                    drawn = self.vq.codebook.detach() * self.vq.num_embeddings  # -1 to 1
                    self.vq.set_codebook(kind.codebook_bound * drawn)
            else:
                self.vq = cast(VQLayer, given_quantizer(quantizer))
                for name, value in own.items():
                    if value is not None:
                        raise ValueError(f"{name} is {value!r}; want it in the quantizer alone")
            shape = {name: size for name, size in sizes.items() if name != "num_mixtures"}
            self.encoder, self.decoder = kind.build(
                network_ndim, in_channels, self._decoded_channels(), self.vq.embedding_dim, **shape
            )
        kind.place(self, network_ndim, device, dtype)
        relus_in_place(self)
        if frame_by_frame:
            self.encoder, self.decoder = FrameByFrame(self.encoder), FrameByFrame(self.decoder)

    @classmethod
    def named(cls, name: str, **overrides: Any) -> Self:
        """As ``Autoencoder.named``; a ``quantizer`` replaces what the configuration says of the layer."""
        if overrides.get("quantizer") is not None:
            names = ("num_embeddings", "embedding_dim", *LayerOptions.__annotations__)
            overrides = {**dict.fromkeys(names), **overrides}
        return super().named(name, **overrides)

    @property
    def config(self) -> dict[str, Any]:
        """A dict; ``VQVAE(**model.config)`` is a new model of the same kind.

        JSON can hold it, unless ``quantizer`` is a module of your own.
        """
        return {
            "architecture": self.architecture,
            "in_channels": self.in_channels,
            "ndim": self.ndim,
            **({"frame_by_frame": True} if self.frame_by_frame else {}),
            **self.sizes,
            "loss_weight": self.loss_weight,
            **self._quantizer_config(),
        }

    def _quantizer_config(self) -> dict[str, Any]:
        if self._has_own_quantizer:
            return {"quantizer": quantizer_config(self.vq)}
        return {name: value for name, value in self.vq.arguments().items() if name != "channel_dim"}

    @property
    def quantizers(self) -> tuple[nn.Module, ...]:
        """The quantiser of the one level."""
        return (self.vq,)

    @property
    def num_mixtures(self) -> int:
        """Of how many logistic distributions the decoder says each value's likelihood; 0 without one."""
        return self.sizes.get("num_mixtures", 0)

    def _decoded_channels(self) -> int:
        mixtures = self.num_mixtures
        return mixture_channels(self.in_channels, mixtures) if mixtures else self.in_channels

    def _reconstruction(self, decoded: Tensor) -> Tensor:
        return logistic_mixture_mean(decoded, self.in_channels) if self.num_mixtures else decoded

    @overload
    def forward(self, x: Tensor, *, return_nats: Literal[False] = False) -> VQVAEOutput: ...
    @overload
    def forward(self, x: Tensor, *, return_nats: Literal[True]) -> tuple[VQVAEOutput, Tensor]: ...
    def forward(self, x: Tensor, *, return_nats: bool = False) -> VQVAEOutput | tuple[VQVAEOutput, Tensor]:
        """Encodes, quantises and decodes ``x``.

        Args:
            x: floating point ``(B, in_channels, *spatial)``, of the model's dtype.
            return_nats: whether to return ``(VQVAEOutput, nats)``, where ``nats (B,)`` is
                ``-log p(x | codes)``, summed over an item's values. That takes ``num_mixtures``, and ``x`` in
                multiples of 1/255.

        Returns:
            ``VQVAEOutput``. With ``num_mixtures`` its reconstruction is the mean of the likelihood.

        Raises:
            TypeError: ``x`` isn't a floating-point tensor, or has another dtype than the model.
            ValueError: the shape doesn't fit the model, ``x`` is empty, or is on another device; the nats of
                a decoder without a likelihood are asked for.

        Example:
            >>> model = vqfast.VQVAE(hidden_channels=8, num_mixtures=5)
            >>> x = torch.randint(256, (2, 3, 16, 16)) / 255
            >>> out, nats = model(x, return_nats=True)
            >>> loss = nats.mean() / x[0].numel() + out.loss
        """
        if return_nats:
            self._check_likelihood()
        self._check_input(x)
        quantized, indices, loss = self.vq(self.encoder(x))
        decoded = self.decoder(quantized)
        output = VQVAEOutput(self._reconstruction(decoded), indices, self.loss_weight * loss)
        return (output, logistic_mixture_nats(decoded, x)) if return_nats else output

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    @whole
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``.

        Args:
            x: as in ``forward``.

        Returns:
            int64 ``(B, *code_shape(spatial))``; heads or stages of the quantiser stand last.

        Raises:
            TypeError, ValueError: as in ``forward``.
        """
        self._check_input(x)
        return self.vq.encode(self.encoder(x))

    @whole
    def decode(self, indices: Tensor) -> Tensor:
        """What the decoder makes of codes.

        Args:
            indices: integer ``(B, *code_shape)``, heads or stages last, -1 to K - 1; -1 stands for a zero
                vector.

        Returns:
            ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``indices`` isn't an integer tensor.
            ValueError: an index is out of range, the shape isn't the model's or is empty, or the devices
                differ.

        Example:
            >>> model = vqfast.VQVAE(hidden_channels=32)
            >>> model.decode(torch.randint(512, (1, 8, 8))).shape
            torch.Size([1, 3, 32, 32])
        """
        quantized: Tensor = self.vq.decode(indices)
        if quantized.ndim != self.ndim + 2 or indices.numel() == 0:
            parts = "" if indices.ndim < quantized.ndim else ", heads or stages last"
            wanted = f"{axes('B', self.ndim)}{parts}, not empty"
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want {wanted}")
        return self._reconstruction(self.decoder(quantized))

    @whole
    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, *, code_bits: Tensor | None = None) -> Tensor:
        """An upper bound on ``-log2 p(x)``, in bits for each value of ``x``: the negative ELBO.

        The bits of a value given the codes, and the bits of the codes, are both divided by the number of
        values. An encoder that gives one code with certainty has no other term.

        Args:
            x: floating point ``(B, in_channels, *spatial)``, multiples of 1/255 in 0 to 1.
            code_bits: ``(B,)``, the bits of all codes of each item under a prior; ``None`` for the uniform
                prior, under which each code has log2 K.

        Returns:
            ``(B,)``.

        Raises:
            TypeError: as in ``forward``.
            ValueError: as in ``forward``, the decoder has no likelihood, or ``code_bits`` has another shape.

        Example:
            >>> import math
            >>> model = vqfast.VQVAE(hidden_channels=8, num_embeddings=16, num_mixtures=5).eval()
            >>> x = torch.randint(256, (2, 3, 16, 16)) / 255
            >>> bits = model.bits_per_dim(x)
            >>> nats = model(x, return_nats=True)[1]  # 4x4 codes of 4 bits; 768 values
            >>> torch.allclose(bits, (nats / math.log(2) + 16 * 4) / 768)
            True
        """
        self._check_likelihood()
        self._check_input(x)
        indices = self.vq.encode(self.encoder(x))
        nats = logistic_mixture_nats(self.decoder(self.vq.decode(indices)), x)
        if code_bits is None:
            code_bits = nats.new_tensor(indices[0].numel() * math.log2(self.vq.num_embeddings))
        elif check_tensor("code_bits", code_bits).shape != nats.shape:
            raise ValueError(f"code_bits has shape {tuple(code_bits.shape)}; want {tuple(nats.shape)}")
        return (nats / math.log(2) + code_bits) / x[0].numel()

    def _check_likelihood(self) -> None:
        if not self.num_mixtures:
            raise ValueError("num_mixtures is 0; want 1 or more for a likelihood")

    def encode_levels(self, x: Tensor) -> list[Tensor]:
        """``encode``, in a list of one."""
        return [self.encode(x)]

    def decode_levels(self, indices: Sequence[Tensor]) -> Tensor:
        """``decode`` of the only one of ``indices``.

        Raises:
            TypeError, ValueError: ``indices`` isn't a sequence of one; or as in ``decode``.
        """
        if isinstance(indices, Tensor) or len(indices) != 1:
            raise ValueError(f"indices has {len(indices)} levels; want a list of 1")
        return self.decode(indices[0])

    def code_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape of the codes of inputs ``(B, in_channels, *spatial)``.

        Raises:
            TypeError, ValueError: as in ``code_shapes``.

        Example:
            >>> vqfast.VQVAE(hidden_channels=32).code_shape((32, 64))
            (8, 16)
        """
        return self.code_shapes(spatial)[0]
