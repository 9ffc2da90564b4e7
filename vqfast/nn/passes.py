"""Forward passes of a layer that learns in forward, where the pass isn't an ordinary one.

``torch.utils.checkpoint`` recomputes a forward pass during backward, when the layer has already moved. So the
first pass leaves a note at each checkpoint around it, and the recomputation reads that note. A note lives as
long as the autograd graph. The checkpoints are found on the Python stack, reentrant or not, nested or not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from vqfast.ops.define import in_functorch

_FIRST, _AGAIN = CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__


def recall(layer: nn.Module, learns: bool) -> Any:
    """The note that ``layer`` left in the first pass, if this pass is its recomputation; else ``None``.

    Raises:
        RuntimeError: the layer ``learns`` and runs in a backward pass without such a note.
    """
    if torch.compiler.is_compiling():
        return None
    task = torch._C._current_graph_task_id()
    if task == -1:
        return None
    running, recomputing = _checkpoints(sys._getframe(1))
    if recomputing is not None:
        notes = vars(recomputing).get("vqfast_notes", ())
        reading, position = vars(recomputing).get("vqfast_reading", (task, 0))
        position = position if reading == task else 0
        if position < len(notes) and notes[position][0] is layer:
            recomputing.vqfast_reading = task, position + 1
            _leave(running, notes[position])
            return notes[position][1]
    if learns:
        raise RuntimeError(
            f"{type(layer).__name__} learns in forward and runs in a backward pass other than that of "
            "torch.utils.checkpoint.checkpoint; call eval() or freeze() before"
        )
    return None


def note(layer: nn.Module, kept: Callable[[], Any]) -> None:
    """Leaves the result of ``kept`` as a note, if a checkpoint will recompute the pass."""
    if torch.compiler.is_compiling():
        return
    # every checkpoint sets one of these; looking at the stack takes longer
    hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
    if not torch.is_grad_enabled() or hooks(True) is not None:
        running, _ = _checkpoints(sys._getframe(1))
        if running:
            _leave(running, (layer, kept()))


def _leave(checkpoints: list[Any], entry: tuple[nn.Module, Any]) -> None:
    for checkpoint in checkpoints:
        vars(checkpoint).setdefault("vqfast_notes", []).append(entry)


def _checkpoints(frame: FrameType | None) -> tuple[list[Any], Any]:
    """The checkpoints around ``frame`` that run for the first time, and the one that recomputes, if any."""
    running = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _FIRST.co_filename:
            if code is _FIRST:
                running.append(frame.f_locals["ctx"])
            elif code is _AGAIN:
                return running, frame.f_locals["ctx"]
            elif code.co_name == "checkpoint" and "gen" in frame.f_locals:
                running.append(frame.f_locals["gen"].gi_frame.f_locals["new_frame"])
            elif code.co_name == "unpack_hook" and "frame" in frame.f_locals:
                return running, frame.f_locals["frame"]
        frame = frame.f_back
    return running, None


def once(codebook: Tensor, moves: bool) -> Tensor:
    """``codebook``; a compiled graph, which leaves no notes, refuses to be recomputed if it ``moves`` it."""
    return first_pass(codebook) if moves and torch.compiler.is_compiling() else codebook


@torch.library.custom_op("vqfast::first_pass", mutates_args=())
def first_pass(codebook: Tensor) -> Tensor:
    """A copy of ``codebook``.

    Raises:
        RuntimeError: it runs in a backward pass.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a compiled layer learns in forward and is recomputed by a checkpoint; compile or checkpoint it, "
            "not both, or call eval() or freeze() before"
        )
    return codebook.clone()


first_pass.register_fake(torch.empty_like)
first_pass.register_autograd(lambda ctx, grad: grad)


def refuse_transforms() -> None:
    """Raises RuntimeError under a transform of ``torch.func``, where a module can't change its state."""
    if in_functorch():
        raise RuntimeError(
            "a codebook learns in place, which torch.func's transforms don't allow; call eval() or freeze() "
            "first, let it learn outside of them, or give the layer kmeans_init=False, revive_below=0 and no "
            "decay"
        )
