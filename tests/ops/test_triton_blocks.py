"""Blocks that share a list of vectors, or sums of codes; interpreted, each block in a thread."""

from __future__ import annotations

import time

import pytest
import torch

from tests.blocks import in_threads
from tests.interpreter import assert_passes, interpreted
from vqfast.ops import registry

here = pytest.mark.skipif(not registry.interpreted(), reason="run in the interpreter by the last test")


@here
@pytest.mark.parametrize("late", [0, 2])
def test_vectors_that_are_listed_are_looked_at_again_whichever_block_ends_last(late) -> None:
    """Each code has a twin, so that all vectors are listed: nine whole chunks and a part, of three blocks."""
    from vqfast.ops.nearest import triton as nearest

    codebook = torch.randn(9, 5).repeat(2, 1)
    x = torch.randn(310, 5)
    with in_threads(late) as blocks:
        found = nearest.nearest(x, codebook)
    assert blocks.most == 3
    assert torch.equal(found, torch.cdist(x.double(), codebook[:9].double()).argmin(1))


@here
def test_listed_vectors_are_written_and_counted_too() -> None:
    """A training step, channels first, in float32 and with a vector that isn't finite."""
    from vqfast.ops.residual import reference, triton

    codebook = torch.randn(9, 5).repeat(2, 1)
    z = torch.randn(2, 5, 70)
    z[1, 2, 30] = torch.inf
    with in_threads(late=1):
        found = triton.quantize(z, codebook, 1, True)
    wanted = reference.quantize(z, codebook, 1, True)
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found, wanted, equal_nan=True)


def gradients_of_codes() -> tuple[torch.Tensor, torch.Tensor, int]:
    """As found by blocks in threads, each of which has every code once; as they are; and the blocks."""
    from vqfast.ops.residual import reference, triton

    z, codebook, one = torch.randn(192, 5), torch.randn(64, 5), torch.ones(())
    given = z, one, one, z, codebook, torch.arange(192) % 64, 1
    with in_threads() as blocks:
        found = triton.backward_stage(*given)[1]
    return found, reference.backward_stage(*given)[1], blocks.most


@here
def test_gradients_are_added_up_over_all_blocks() -> None:
    found, wanted, blocks = gradients_of_codes()
    assert blocks == 3
    torch.testing.assert_close(found, wanted)


@here
def test_gradients_are_not_added_up_where_a_block_may_come_between_reading_and_writing(monkeypatch) -> None:
    from triton.runtime import interpreter

    memory = interpreter._interpreter

    def apart(_, at, added, mask, *order):
        before = memory.load(at, mask, added * 0, added.dtype)
        time.sleep(0.05)
        memory.store(at, before + added, mask)
        return before

    monkeypatch.setattr(memory, "atomic_rmw", apart)
    found, wanted, _ = gradients_of_codes()
    assert not torch.allclose(found, wanted)


@pytest.mark.parametrize("expression", [pytest.param("listed or added", marks=interpreted)])
def test_they_pass_in_the_interpreter(expression) -> None:
    assert_passes([__file__], expression)
