"""A small classifier of items, which judges what a prior draws."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vqfast.checks import check_integer, check_sizes
from vqfast.nn.calls import typed_as
from vqfast.nn.residual_block import convolutions
from vqfast.saving import Pretrained
from vqfast.saving.models import loadable

POOLED = 4  # positions along an axis, so that the linear layer knows where things are


@loadable
class Classifier(nn.Module, Pretrained):
    """Three convolutions of stride 2, each with normalisation and a ReLU; means over parts; a linear layer.

    Args:
        in_channels: C.
        num_classes: the number of classes.
        hidden_channels: of the first convolution; the others have twice and four times as many.
        ndim: the number of spatial axes, 1 to 3.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> vqfast.models.Classifier(1, 10)(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, hidden_channels: int = 16, ndim: int = 2
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, num_classes=num_classes, hidden_channels=hidden_channels)
        check_integer("ndim", ndim, 1, 3)
        self.num_classes = num_classes
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "hidden_channels": hidden_channels,
            "ndim": ndim,
        }
        conv, _ = convolutions(ndim)
        widths = [in_channels, hidden_channels, 2 * hidden_channels, 4 * hidden_channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [conv(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.ReLU()]
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[ndim - 1]
        self.layers = nn.Sequential(*layers, pool(POOLED), nn.Flatten())
        self.head = nn.Linear(widths[-1] * POOLED**ndim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of items ``(B, in_channels, *spatial)``."""
        logits: Tensor = self.head(self.layers(x))
        return logits

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...
