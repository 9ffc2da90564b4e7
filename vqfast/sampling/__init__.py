"""Sampling: programs, the executors that run them, and the draw."""
