"""Arguments that are numbers: the one place that words what is wrong with them."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_integer(name: str, value: object, least: int = 1, end: int | None = None) -> None:
    """An integer, no bool, in ``least..end - 1``; without an end, below 2^63 as torch's sizes are.

    Raises:
        TypeError: ``value`` isn't an integer.
        ValueError: it is out of range.
    """
    if end is not None:
        wanted = f"an integer in {least}..{end - 1}"
    else:
        wanted = "a positive integer" if least == 1 else f"an integer, {least} or more"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; want {wanted}")
    if end is None and int(value) >= 2**63:
        raise ValueError(f"{name} is {value!r}; want {wanted}, below 2^63")
    if int(value) < least or (end is not None and int(value) >= end):
        raise ValueError(f"{name} is {value!r}; want {wanted}")


def check_real(name: str, value: object, wanted: str) -> None:
    """A finite number, no bool; ``wanted`` says which in an error.

    Raises:
        TypeError: ``value`` isn't a number.
        ValueError: it is infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; want {wanted}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; want {wanted}")
