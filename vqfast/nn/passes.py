"""What a layer that learns in forward does where a forward pass isn't an ordinary one.

torch.utils.checkpoint runs a pass again during backward, when the layer has moved. So the first pass leaves a
note at each checkpoint around it, which lives as long as the graph, and the recomputation reads it. Only the
Python stack tells which checkpoint that is, reentrant or not, nested or not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

_FIRST, _AGAIN = CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__


def recall(layer: nn.Module, learns: bool) -> Any:
    """What ``layer`` noted in the first pass of which this is a recomputation; else ``None``.

    Raises:
        RuntimeError: a layer that ``learns`` runs in a backward pass without such a note.
    """
    if torch.compiler.is_compiling():
        return None
    task = torch._C._current_graph_task_id()
    if task == -1:
        return None
    first, again = _checkpoints(sys._getframe(1))
    notes = vars(again).get("vqfast_notes", ()) if again is not None else ()
    reading, position = vars(again).get("vqfast_reading", (task, 0)) if notes else (task, 0)
    position = position if reading == task else 0
    if position < len(notes) and notes[position][0] is layer:
        again.vqfast_reading = task, position + 1
        _leave(first, notes[position])
        return notes[position][1]
    if learns:
        raise RuntimeError(
            f"{type(layer).__name__} learns in forward and runs in a backward pass; want that of "
            "torch.utils.checkpoint.checkpoint only, or eval() or freeze() before"
        )
    return None


def note(layer: nn.Module, kept: Callable[[], Any]) -> None:
    """Leaves what ``kept`` returns to the recomputation, if the pass is to be recomputed."""
    if torch.compiler.is_compiling():
        return
    # what every checkpoint sets; the stack takes longer to look at
    if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        first, _ = _checkpoints(sys._getframe(1))
        if first:
            _leave(first, (layer, kept()))


def _leave(checkpoints: list[Any], entry: tuple[nn.Module, Any]) -> None:
    for checkpoint in checkpoints:
        vars(checkpoint).setdefault("vqfast_notes", []).append(entry)


def _checkpoints(frame: FrameType | None) -> tuple[list[Any], Any]:
    """The checkpoints around ``frame`` that run for the first time, and the one that recomputes, if any."""
    first = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _FIRST.co_filename:
            if code is _FIRST:
                first.append(frame.f_locals["ctx"])
            elif code is _AGAIN:
                return first, frame.f_locals["ctx"]
            elif code.co_name == "checkpoint" and "gen" in frame.f_locals:
                first.append(frame.f_locals["gen"].gi_frame.f_locals["new_frame"])
            elif code.co_name == "unpack_hook" and "frame" in frame.f_locals:
                return first, frame.f_locals["frame"]
        frame = frame.f_back
    return first, None


def first(copy: Tensor, moves: bool) -> Tensor:
    """``copy`` of codes that the pass ``moves``. A compiled graph, without notes, refuses to run again."""
    return first_pass(copy) if moves and torch.compiler.is_compiling() else copy


@torch.library.custom_op("vqfast::first_pass", mutates_args=())
def first_pass(codes: Tensor) -> Tensor:
    """``codes``, unless it runs in a backward pass.

    Raises:
        RuntimeError: it does.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a compiled layer learns in forward and is recomputed by a checkpoint; want it compiled or "
            "checkpointed, not both, or eval() or freeze() before"
        )
    return codes.clone()


first_pass.register_fake(torch.empty_like)
first_pass.register_autograd(lambda ctx, grad: grad)
