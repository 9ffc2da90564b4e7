"""Lowers causal networks of any make to sampling programs, by a trace of their operations.

``graph`` records a call as ATen operations. ``lower`` interprets them over the values of ``values``, by the
rules of ``arithmetic``, ``linear``, ``norms``, ``shapes`` and ``tables``; ``context`` turns values into
steps. ``fuse`` makes the steps fewer and checks that they are causal.
"""
