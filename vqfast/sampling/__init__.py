"""Sampling of programs: what they are, the executors that run them, and the draw."""

from vqfast.sampling.attention import Attention
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, CONDITION, Phase, Program, Step, Term, codes_of

__all__ = [
    "CODES",
    "CONDITION",
    "Attention",
    "Phase",
    "Program",
    "ProgramBuilder",
    "Step",
    "Term",
    "codes_of",
]
