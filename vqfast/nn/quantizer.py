"""How both quantisers are called."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor, nn

from vqfast.nn.calls import typed_as
from vqfast.nn.outputs import LossParts, VQOutput
from vqfast.nn.script import refuse_script


class Quantizer(nn.Module):
    """The calls that ``VQLayer`` and ``ResidualVQLayer`` share."""

    __prepare_scriptable__ = refuse_script

    @abstractmethod
    def quantize(self, z_e: Tensor, mask: Tensor | None) -> tuple[VQOutput, LossParts]:
        """``forward``, with the parts of the loss."""

    @overload
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: Literal[False] = False
    ) -> VQOutput: ...
    @overload
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: Literal[True]
    ) -> tuple[VQOutput, LossParts]: ...
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: bool = False
    ) -> VQOutput | tuple[VQOutput, LossParts]:
        """Quantises ``z_e``; in training mode also moves the codebook, as the options say.

        Args:
            z_e: floating point ``(B, D)``, ``(B, D, T)``, ``(B, D, H, W)``, ``(B, D, T, H, W)`` or, with
                ``channel_dim=-1``, the same with ``D`` last.
            mask: bool ``(B, *spatial)``, ``False`` at padding, which is quantised to zero with index -1 and
                has no influence on anything else, even where it is NaN.
            return_parts: whether to return ``(VQOutput, LossParts)``.

        Returns:
            ``VQOutput``: ``quantized`` as ``z_e``; ``indices`` int64 ``(B, *spatial)``, with heads or stages
            last; ``loss`` a scalar. ``LossParts``: scalars, or one value for each stage ``(Q,)``.

        Raises:
            TypeError: ``z_e`` isn't a floating-point tensor, or ``mask`` isn't a bool tensor.
            ValueError: ``z_e`` is empty (and no other rank could have vectors), its channels aren't
                ``embedding_dim``, ``mask`` has another shape, or the devices differ.

        Example:
            >>> vq = vqfast.VQLayer(16, 4)
            >>> output, parts = vq(torch.randn(10, 4), return_parts=True)
            >>> torch.equal(output.loss, parts.codebook + 0.25 * parts.commitment)
            True
        """
        output, parts = self.quantize(z_e, mask)
        return (output, parts) if return_parts else output

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...
