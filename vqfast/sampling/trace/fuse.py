"""Makes the steps of a program fewer, and finds the step that looks ahead, if one does."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from torch import fx

from vqfast.sampling.attention import Attention
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import AnyStep, Phase, Program, Step, Term, phase_of
from vqfast.sampling.trace.graph import place


class NotCausal(ValueError):
    """A step, or the logits, depend on later codes."""


def fuse_steps(
    builder: ProgramBuilder, origins: list[fx.Node], num_logits: int
) -> tuple[list[AnyStep], list[fx.Node]]:
    """Fewer steps with the same logits, and the node of the graph that each of them computes.

    The last ``num_logits`` steps are the logits.
    """
    steps = list(builder.steps)
    for number in range(len(steps) - num_logits):
        _join_sum(steps, number, builder)
    for number in reversed(range(len(steps) - num_logits)):
        _fold_residual(steps, number)
    return _drop_unread([_with_residual(step) for step in steps], origins, num_logits)


def _readers(steps: list[AnyStep], number: int) -> list[int]:
    """The steps that read step ``number``."""
    return [n for n, step in enumerate(steps) if number in _sources(step)]


def _sources(step: AnyStep) -> list[int]:
    """The steps that a step reads."""
    if isinstance(step, Attention):
        return [*step.sources]
    read = [term.source for term in step.terms if term.source >= 0]
    return read if step.residual is None else [*read, step.residual]


def _is_sum(step: AnyStep) -> TypeGuard[Step]:
    """Whether a step is a sum of terms and biases alone."""
    return isinstance(step, Step) and step.activation == "none" and step.residual is None and bool(step.terms)


def _join_sum(steps: list[AnyStep], number: int, builder: ProgramBuilder) -> None:
    """Moves the terms of a sum into the only step that reads it, if that adds it as it is."""
    readers, step, bare = _readers(steps, number), steps[number], Term(number)
    if not _is_sum(step) or len(readers) != 1:
        return
    reader = steps[readers[0]]
    if (
        isinstance(reader, Attention)
        or reader.residual == number
        or [t for t in reader.terms if t.source == number] != [bare]
    ):
        return

    def both(a: str | None, b: str | None) -> str | None:
        return builder.keep(builder.weights[a] + builder.weights[b]) if a and b else a or b

    steps[readers[0]] = replace(
        reader,
        terms=(*step.terms, *(term for term in reader.terms if term != bare)),
        bias=both(step.bias, reader.bias),
        label_bias=both(step.label_bias, reader.label_bias),
    )
    steps[number] = replace(step, terms=())


def _fold_residual(steps: list[AnyStep], number: int) -> None:
    """Replaces the sum of two values by a residual of the later one, if nothing else reads that one."""
    step = steps[number]
    if not _is_sum(step) or step.bias or step.label_bias or len(step.terms) != 2:
        return
    if any(term.weight or term.source < 0 for term in step.terms):
        return
    for added, other in (step.terms, step.terms[::-1]):
        target = steps[added.source]
        if (
            isinstance(target, Step)
            and target.residual is None
            and other.source < added.source
            and _readers(steps, added.source) == [number]
        ):
            steps[added.source] = replace(target, residual=other.source)
            steps[number] = replace(step, terms=())
            steps[:] = [_renumbered(each, number, added.source) for each in steps]
            return


def _with_residual(step: AnyStep) -> AnyStep:
    """The step, with one value that it adds as it is as its residual, as priors lower themselves."""
    bare = [term for term in step.terms if term.weight is None]
    if not _is_sum(step) or not bare or len(step.terms) == 1:
        return step
    terms = tuple(term for term in step.terms if term is not bare[0])
    return replace(step, terms=terms, residual=bare[0].source)


def _renumbered(step: AnyStep, old: int, new: int) -> AnyStep:
    """The step, which reads step ``new`` where it read step ``old``."""
    if isinstance(step, Attention):
        query, key, value = (new if source == old else source for source in step.sources)
        return replace(step, query=query, key=key, value=value)
    terms = tuple(replace(term, source=new) if term.source == old else term for term in step.terms)
    return replace(step, terms=terms, residual=new if step.residual == old else step.residual)


def _drop_unread(
    steps: list[AnyStep], origins: list[fx.Node], num_logits: int
) -> tuple[list[AnyStep], list[fx.Node]]:
    """The steps that the logits depend on, numbered anew."""
    needed, stack = set(), list(range(len(steps) - num_logits, len(steps)))
    while stack:
        number = stack.pop()
        if number not in needed:
            needed.add(number)
            stack += _sources(steps[number])
    kept = sorted(needed)
    for new, old in enumerate(kept):
        steps = [_renumbered(step, old, new) for step in steps]
    return [steps[number] for number in kept], [origins[number] for number in kept]


def check_causal(steps: list[AnyStep], origins: list[fx.Node], num_logits: int) -> None:
    """Checks that no step reads a later position, and that no logits depend on their own code.

    Raises:
        NotCausal: one does; the message has the line of the network that computes the first such step.
    """
    phases: list[int] = []
    for step, node in zip(steps, origins, strict=True):
        try:
            phases.append(phase_of(step, phases))
        except ValueError:
            raise NotCausal(f"the value computed at {place(node)} reads a later position") from None
    if any(phase >= Phase.CODE + code for code, phase in enumerate(phases[-num_logits:])):
        raise NotCausal("the logits depend on the code that they are for")


def same_steps(a: Program, b: Program) -> bool:
    """Whether programs do the same, but for the scale of attentions, which is measured."""
    return _with_scale_1(a) == _with_scale_1(b)


def _with_scale_1(program: Program) -> Program:
    steps = (replace(step, scale=1.0) if isinstance(step, Attention) else step for step in program.steps)
    return replace(program, steps=tuple(steps))
