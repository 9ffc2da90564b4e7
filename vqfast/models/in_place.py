"""ReLUs that write over their input, where nothing else reads it."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from vqfast.nn.residual_block import ResidualBlock

# what gives a new tensor that its own gradient doesn't need
GIVING = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    ResidualBlock,
)


def relus_in_place(model: nn.Module) -> None:
    """Lets each ReLU that follows a convolution or a residual block in an ``nn.Sequential`` work in place.

    Results and gradients have the same bits, and a step needs less fresh memory.
    """
    for modules in model.modules():
        if isinstance(modules, nn.Sequential):
            for before, after in pairwise(modules):
                if isinstance(after, nn.ReLU) and isinstance(before, GIVING):
                    after.inplace = True
