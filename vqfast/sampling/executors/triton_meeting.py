"""How the blocks of a group wait for each other in the kernels of the Triton executor."""

# mypy: ignore-errors
# Triton compiles these functions; their arguments have no Python types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait(counter, arrivals, SHARED: tl.constexpr):
    """Waits until the group's blocks have finished the jobs before."""
    if SHARED:
        while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
            pass
        tl.debug_barrier()


@triton.jit
def arrive(counter, SHARED: tl.constexpr):
    """Tells the group that the block's stores can be read."""
    tl.debug_barrier()
    if SHARED:
        tl.atomic_add(counter, 1, sem="release")
