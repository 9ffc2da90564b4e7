"""A small classifier of items, which judges what a prior draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vqfast.checks import check_integer, check_sizes
from vqfast.models.architectures import convolutions
from vqfast.nn.calls import typed_as


class Classifier(nn.Module):
    """Three convolutions with ReLUs, the last two of stride 2, means over all positions, and a linear layer.

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
        self, in_channels: int, num_classes: int, *, hidden_channels: int = 32, ndim: int = 2
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
        self.layers = nn.Sequential(
            conv(in_channels, hidden_channels, 3, padding=1),
            nn.ReLU(),
            conv(hidden_channels, 2 * hidden_channels, 3, stride=2, padding=1),
            nn.ReLU(),
            conv(2 * hidden_channels, 4 * hidden_channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * hidden_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of items ``(B, in_channels, *spatial)``."""
        logits: Tensor = self.head(self.layers(x).flatten(2).mean(2))
        return logits

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...
