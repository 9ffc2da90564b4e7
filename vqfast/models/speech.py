"""The speech model of the VQ-VAE paper: an encoder of waveforms, codes, and a WaveNet as decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_number, check_placement, check_sizes
from vqfast.models.autoencoder import Autoencoder
from vqfast.models.configs import SPEECH_CONFIGS
from vqfast.models.mu_law import mu_law_encode
from vqfast.models.quantizers import LayerOptions, make_layer
from vqfast.models.speech_drawing import Drawing, DrawOptions, drawn_pieces
from vqfast.models.speech_encoder import MelDecoder, counted, encoder_reach, speech_encoder
from vqfast.models.speech_likelihood import mean_of, nats_in_pieces, nats_of, start_in_order
from vqfast.models.vqvae import VQVAEOutput
from vqfast.nn.calls import typed_as
from vqfast.nn.sharded import whole
from vqfast.priors.wavenet import WaveNet
from vqfast.sampling.batches import as_labels
from vqfast.saving.models import loadable

if TYPE_CHECKING:
    from typing_extensions import Unpack

PIECE = 1 << 16  # samples of a waveform that are encoded or judged at a time


@loadable
class SpeechVQVAE(Autoencoder):
    """The paper's model of speech: waveforms ``(B, 1, T)`` to codes ``(B, T / stride)`` and back.

    Strided convolutions encode; a WaveNet decodes, which draws sample after sample in mu-law, conditioned on
    the upsampled code vectors and on the speaker. Trained with the speaker given, codes keep the content and
    lose the voice, so that codes of one speaker decode in the voice of another.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 4.3. ``CONFIGS["paper-speech"]`` has six
    convolutions of stride 2 and window 4, codes 64 times fewer than samples. For phones the paper has codes
    640 times fewer: ``encoder_strides=(2, 2, 2, 2, 2, 2, 2, 5)``. ``CONFIGS["mel-speech"]`` has as few, 25 a
    second at 16 kHz, and learns much sooner: its encoder starts with a log-mel spectrogram, which a second,
    fast decoder learns to tell from the codes and the speaker, so that its error trains the encoder too.

    Waveforms of any length are taken: they are padded with zeros to a multiple of the stride.

    Args:
        encoder_strides: of the convolutions of the encoder; their product is the stride of the codes.
        hidden_channels: of the encoder.
        num_residual_blocks: of the encoder.
        num_mels: bands of a log-mel spectrogram that the encoder starts with, whose hop is the first of
            ``encoder_strides``. ``None`` starts with samples, as the paper does.
        mel_weight: of the second decoder's squared error in the loss; 0 for no such decoder. It takes
            ``num_mels``.
        rate: samples a second, for the mel scale.
        num_classes: the number of speakers, which are the labels; ``None`` for a model that isn't told who
            speaks.
        wavenet_channels, wavenet_layers, dilation_cycle: of the ``WaveNet``.
        condition_channels: of the map that the code vectors become for the ``WaveNet``.
        num_values: how many values a sample of the ``WaveNet`` has, see ``mu_law_encode``.
        num_mixtures: of logistic distributions that a sample is drawn from, along the values in mu-law, see
            ``WaveNet``; ``None`` for a probability of each value.
        loss_weight: what the quantiser's loss is multiplied by in ``VQVAEOutput.loss``.
        num_embeddings, embedding_dim: of the ``VQLayer``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.
        options: all other options of ``VQLayer`` but ``channel_dim``, see ``LayerOptions``.

    Attributes:
        encoder, vq, conditioner, wavenet, mel_decoder: the modules. ``conditioner`` makes the map for the
            WaveNet, before it is upsampled.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> small = {"hidden_channels": 16, "wavenet_channels": 8, "wavenet_layers": 4}
        >>> model = vqfast.models.SpeechVQVAE(encoder_strides=(4, 4), num_classes=2, **small)
        >>> waves, speakers = torch.rand(3, 1, 1000) * 2 - 1, torch.tensor([0, 1, 0])
        >>> indices = model.encode(waves)
        >>> indices.shape
        torch.Size([3, 63])
        >>> converted = model.decode(indices, labels=1, seed=7)
        >>> converted.shape
        torch.Size([3, 1, 1008])
    """

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = SPEECH_CONFIGS
    in_channels, ndim = 1, 1
    value_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        encoder_strides: Sequence[int] = (2,) * 6,
        hidden_channels: int = 256,
        num_residual_blocks: int = 2,
        num_mels: int | None = None,
        mel_weight: float = 0.0,
        rate: int = 16_000,
        num_classes: int | None = None,
        wavenet_channels: int = 64,
        wavenet_layers: int = 30,
        dilation_cycle: int = 10,
        condition_channels: int = 64,
        num_values: int = 256,
        num_mixtures: int | None = None,
        loss_weight: float = 1.0,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        if not isinstance(encoder_strides, Sequence) or not encoder_strides:
            raise TypeError(f"encoder_strides is {encoder_strides!r}; want a sequence of integers")
        for stride in encoder_strides:
            check_integer("encoder_strides", stride, maximum=1 << 20)
        check_sizes(hidden_channels=hidden_channels, rate=rate, condition_channels=condition_channels)
        check_integer("num_residual_blocks", num_residual_blocks, 0)
        check_integer("num_mels", num_mels, optional=True)
        check_number("mel_weight", mel_weight, minimum=0)
        if mel_weight and num_mels is None:
            raise ValueError(f"mel_weight is {mel_weight}; want 0 without num_mels")
        check_integer("num_values", num_values, 2)
        check_number("loss_weight", loss_weight, minimum=0)
        self.encoder_strides = tuple(encoder_strides)
        self.strides = (math.prod(self.encoder_strides),)
        self.num_classes, self.num_values = num_classes, num_values
        self.loss_weight, self.mel_weight = loss_weight, mel_weight
        self.sizes: dict[str, Any] = {
            "hidden_channels": hidden_channels,
            "num_residual_blocks": num_residual_blocks,
            "num_mels": num_mels,
            "rate": rate,
        }
        with nullcontext() if device is None else torch.device(device):
            self.vq = make_layer(num_embeddings, embedding_dim, options)
            self.encoder = speech_encoder(self.encoder_strides, embedding_dim=embedding_dim, **self.sizes)
            self.mel_decoder = None
            if mel_weight and num_mels is not None:
                sizes = (hidden_channels, num_residual_blocks, embedding_dim, num_mels, num_classes)
                self.mel_decoder = MelDecoder(self.encoder_strides, *sizes)
            self.conditioner = nn.Sequential(
                nn.Conv1d(embedding_dim, condition_channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv1d(condition_channels, condition_channels, 1),
            )
            self.wavenet = WaveNet(
                num_values,
                wavenet_channels,
                wavenet_layers,
                dilation_cycle=dilation_cycle,
                num_classes=num_classes,
                condition_channels=condition_channels,
                condition_stride=self.stride,
                num_mixtures=num_mixtures,
            )
        start_in_order(self.wavenet)
        self.to(device=device, dtype=dtype)

    @property
    def config(self) -> dict[str, Any]:
        """A dict that JSON can hold; ``SpeechVQVAE(**model.config)`` is a new model of the same kind."""
        return {
            "encoder_strides": list(self.encoder_strides),
            **self.sizes,
            "mel_weight": self.mel_weight,
            "wavenet_channels": self.wavenet.embedding.embedding_dim,
            "wavenet_layers": len(self.wavenet.layers),
            **{n: getattr(self.wavenet, n) for n in ("num_classes", "dilation_cycle", "condition_channels")},
            "num_values": self.num_values,
            "num_mixtures": self.wavenet.num_mixtures,
            "loss_weight": self.loss_weight,
            **{name: value for name, value in self.vq.arguments().items() if name != "channel_dim"},
        }

    @property
    def quantizers(self) -> tuple[nn.Module, ...]:
        """The quantiser of the one level."""
        return (self.vq,)

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        labels: Tensor | int | None = None,
        lengths: Tensor | None = None,
        return_nats: Literal[False] = False,
    ) -> VQVAEOutput: ...
    @overload
    def forward(
        self,
        x: Tensor,
        *,
        labels: Tensor | int | None = None,
        lengths: Tensor | None = None,
        return_nats: Literal[True],
    ) -> tuple[VQVAEOutput, Tensor]: ...
    def forward(
        self,
        x: Tensor,
        *,
        labels: Tensor | int | None = None,
        lengths: Tensor | None = None,
        return_nats: bool = False,
    ) -> VQVAEOutput | tuple[VQVAEOutput, Tensor]:
        """Encodes and quantises ``x``, and predicts each sample from the codes and the samples before it.

        Args:
            x: floating point ``(B, 1, T)`` in [-1, 1], of the model's dtype.
            labels: integer ``(B,)`` or one integer for all, the speakers, if the model has ``num_classes``.
            lengths: integer ``(B,)``, how many samples of each waveform count, the others being padding;
                ``None`` for all.
            return_nats: whether to return ``(VQVAEOutput, nats)``, where ``nats (B,)`` is
                ``-log p(x | codes, labels)``, summed over the samples that count.

        Returns:
            ``VQVAEOutput``; its reconstruction ``(B, 1, T)`` has the mean of each sample, given the samples
            of ``x`` before it (with ``num_mixtures`` the mean in mu-law); its loss has the second decoder's
            error too, if there is one.

        Raises:
            TypeError: an argument has the wrong type, or ``x`` another dtype than the model.
            ValueError: a shape doesn't fit the model, ``x`` is empty, or a tensor is on another device.

        Example:
            >>> model = vqfast.models.SpeechVQVAE(hidden_channels=16, wavenet_channels=8, wavenet_layers=4)
            >>> x = torch.rand(2, 1, 640) * 2 - 1
            >>> out, nats = model(x, return_nats=True)
            >>> loss = nats.sum() / x.numel() + out.loss
        """
        self._check_input(x)
        lengths = None if lengths is None else lengths.to(x.device)
        shown = counted(x, self.stride, lengths)
        z_e = self.encoder(self._padded(x))
        quantized, indices, loss = self.vq(z_e, shown) if shown is not None else self.vq(z_e)
        values = mu_law_encode(x.squeeze(1), self.num_values)
        logits = self.wavenet(values, labels, self.conditioner(quantized))
        loss = self.loss_weight * loss
        if self.mel_decoder is not None:
            told = as_labels(labels, len(x), x.device)
            mels = self.encoder[0](self._padded(x))
            loss = loss + self.mel_weight * self.mel_decoder.error(quantized, told, mels, lengths)
        output = VQVAEOutput(mean_of(self.wavenet, logits.detach()).unsqueeze(1), indices, loss)
        return (output, nats_of(self.wavenet, logits, values, lengths)) if return_nats else output

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    @whole
    @torch.no_grad()
    def encode(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The codes of ``x``. Long waveforms are encoded piece by piece, in memory that doesn't grow.

        Args:
            x, lengths: as in ``forward``.

        Returns:
            int64 ``(B, ceil(T / stride))``; -1 where there are only samples that don't count.
        """
        self._check_input(x)
        shown = counted(x, self.stride, None if lengths is None else lengths.to(x.device))
        x, stride, sizes = self._padded(x), self.stride, self.sizes
        reach = encoder_reach(self.encoder_strides, sizes["num_residual_blocks"], sizes["num_mels"])
        piece, codes = max(1, PIECE // stride), []
        for first in range(0, x.shape[2] // stride, piece):
            begin = max(0, first - reach)
            z_e = self.encoder(x[:, :, begin * stride : (first + piece + reach) * stride])
            own = slice(first - begin, first - begin + piece)
            told = None if shown is None else shown[:, first:][:, :piece]
            codes.append(self.vq.encode(z_e[:, :, own], told))
        return torch.cat(codes, 1)

    @whole
    @torch.no_grad()
    def decode(
        self,
        indices: Tensor,
        *,
        labels: Tensor | int | None = None,
        numbers: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        precision: str | None = None,
        method: str = "auto",
        batch_size: int = 64,
        progress: Callable[[int], object] | bool = False,
    ) -> Tensor:
        """Draws waveforms of codes, sample after sample.

        Args:
            indices: integer ``(B, T / stride)``, -1 to K - 1; -1 gives silence.
            labels: as in ``forward``: the speakers whose voices the waveforms get.
            numbers, seed, temperature, precision, method, batch_size, progress: see ``CausalPrior.sample``.

        Returns:
            ``(B, 1, T)`` in [-1, 1].

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, or the shape isn't the model's or is empty.
        """
        how: DrawOptions = {"labels": labels, "numbers": numbers, "seed": seed, "precision": precision}
        how |= {"temperature": temperature, "method": method, "batch_size": batch_size, "progress": progress}
        return torch.cat(list(self.decode_pieces(indices, **how)), 2)

    def decode_pieces(self, indices: Tensor, **options: Unpack[DrawOptions]) -> Iterator[Tensor]:
        """The waveforms of ``decode`` piece after piece, in memory that doesn't grow with their length.

        Args:
            indices, options: as in ``decode``, which has the same samples.

        Returns:
            An iterator of ``(B, 1, t)``.

        Raises:
            TypeError, ValueError: as in ``decode``.

        Example:
            >>> model = vqfast.models.SpeechVQVAE(wavenet_channels=8, wavenet_layers=4).eval()
            >>> indices = torch.randint(512, (1, 3))
            >>> pieces = list(model.decode_pieces(indices, seed=1))
            >>> torch.equal(torch.cat(pieces, 2), model.decode(indices, seed=1))
            True
        """
        return drawn_pieces(Drawing(self.vq, self.conditioner, self.wavenet), indices, options)

    @whole
    @torch.no_grad()
    def nats(
        self,
        x: Tensor,
        indices: Tensor,
        *,
        labels: Tensor | int | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """``-log p(x | codes, labels)`` for any codes, summed over the samples that count.

        Long waveforms are taken piece by piece, in memory that doesn't grow.

        Args:
            x, labels, lengths: as in ``forward``.
            indices: integer ``(B, ceil(T / stride))``, as ``encode`` gives.

        Returns:
            ``(B,)``. Bits for each sample are ``nats / (lengths * log(2))``.

        Raises:
            TypeError, ValueError: as in ``forward``.

        Example:
            >>> model = vqfast.models.SpeechVQVAE(wavenet_channels=8, wavenet_layers=4).eval()
            >>> x = torch.rand(2, 1, 640) * 2 - 1
            >>> nats = model.nats(x, model.encode(x))
            >>> torch.allclose(nats, model(x, return_nats=True)[1])
            True
        """
        self._check_input(x)
        lengths = None if lengths is None else lengths.to(x.device)
        values = mu_law_encode(x.squeeze(1), self.num_values)
        condition = self.conditioner(self.vq.decode(indices))
        return nats_in_pieces(self.wavenet, values, labels, condition, lengths, PIECE).to(x)

    def encode_levels(self, x: Tensor) -> list[Tensor]:
        """``encode``, in a list of one."""
        return [self.encode(x)]

    def decode_levels(self, indices: Sequence[Tensor]) -> Tensor:
        """``decode`` of the only one of ``indices``.

        Raises:
            TypeError, ValueError: ``indices`` isn't a sequence of one, the model has ``num_classes``; or as
                in ``decode``.
        """
        if isinstance(indices, Tensor) or len(indices) != 1:
            raise ValueError(f"indices has {len(indices)} levels; want a list of 1")
        return self.decode(indices[0])

    def code_shapes(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """As ``Autoencoder.code_shapes``, for every length."""
        check_integer("spatial", spatial[0])
        return [(-(-spatial[0] // self.stride),)]

    def _check_spatial(self, spatial: Sequence[int]) -> None:
        if not spatial[0]:
            raise ValueError(f"spatial is {tuple(spatial)}; want a positive length")

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[2] % self.stride))
