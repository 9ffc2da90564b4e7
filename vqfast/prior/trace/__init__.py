"""Other people's causal networks, traced into sampling programs."""

from vqfast.prior.trace.prior import program_of

__all__ = ["program_of"]
