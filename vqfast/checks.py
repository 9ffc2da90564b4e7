"""The one place that words an error about an argument: "NAME is GOT; want WANTED".

A value of the wrong type is a TypeError, a value out of range a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

import torch
from torch import Tensor

from vqfast.ops.define import behind_transforms
from vqfast.ops.registry import FLOATS

Device = torch.device | str | int | None
INT64_MAX = 2**63 - 1  # torch's largest size


def check_integer(
    name: str, value: object, minimum: int = 1, maximum: int = INT64_MAX, *, optional: bool = False
) -> None:
    """An integer from ``minimum`` to ``maximum``, not a bool; with ``optional`` also None.

    Raises:
        TypeError: ``value`` isn't an integer.
        ValueError: it is out of range.
    """
    if type(value) is int and minimum <= value <= maximum:
        return  # before any wording: calls of small ops feel it
    if value is None and optional:
        return
    if maximum != INT64_MAX:
        wanted = f"an integer in {minimum}..{maximum}"
    else:
        wanted = "a positive integer" if minimum == 1 else f"an integer, {minimum} or more"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; want {wanted}{', or None' if optional else ''}")
    if int(value) > INT64_MAX == maximum:
        wanted += ", below 2^63"
    if not minimum <= int(value) <= maximum:
        raise ValueError(f"{name} is {value!r}; want {wanted}{', or None' if optional else ''}")


def check_sizes(**sizes: object) -> None:
    """Positive integers, each as ``check_integer``."""
    for name, value in sizes.items():
        check_integer(name, value)


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """A finite number within the bounds that are given, not a bool; with ``optional`` also None.

    Raises:
        TypeError: ``value`` isn't a number.
        ValueError: it is out of range, infinite or NaN.
    """
    if value is None and optional:
        return
    bounds = {"{} or more": minimum, "above {}": above, "up to {}": maximum, "below {}": below}
    wanted = ", ".join(words.format(bound) for words, bound in bounds.items() if bound is not None)
    message = f"{name} is {value!r}; want a finite number, {wanted}{', or None' if optional else ''}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    try:
        number = float(value)
    except OverflowError:  # an integer
        number = math.inf
    if not (
        math.isfinite(number)
        and (minimum is None or number >= minimum)
        and (above is None or number > above)
        and (maximum is None or number <= maximum)
        and (below is None or number < below)
    ):
        raise ValueError(message)


def check_flags(**flags: object) -> None:
    """Truth values.

    Raises:
        TypeError: a value is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; want True or False")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """One of several strings.

    Raises:
        TypeError: ``value`` isn't a string.
        ValueError: it isn't one of ``choices``.
    """
    if isinstance(value, str) and value in choices:
        return
    *others, last = map(repr, choices)
    wanted = f"{', '.join(others)} or {last}" if others else last
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} is {value!r}; want {wanted}")


def check_placement(device: object, dtype: object) -> None:
    """The ``device`` and ``dtype`` of a module's parameters, as in ``torch.nn``.

    Raises:
        TypeError: ``device`` isn't a device, its name, its number or None; ``dtype`` isn't a dtype or None.
        ValueError: torch has no such device, or vqfast doesn't compute in ``dtype``.
    """
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int, type(None))):
        raise TypeError(f"device is {device!r}; want a torch.device, its name or number, or None")
    if device is not None:
        try:
            torch.device(device)
        except (RuntimeError, ValueError):
            raise ValueError(f"device is {device!r}; want one that torch knows, or None") from None
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {dtype!r}; want {_dtypes()}, or None")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype!r}; want {_dtypes()}, or None")


def _dtypes() -> str:
    *others, last = sorted(map(str, FLOATS))
    return f"{', '.join(others)} or {last}"


def check_tensor(name: str, value: object) -> Tensor:
    """``value``, if it is a dense tensor.

    Raises:
        TypeError: it isn't a tensor, or a sparse, nested or mkldnn one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; want a tensor")
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout)
        raise TypeError(f"{name} is a tensor of layout {kind}; want a dense one")
    return value


def check_device(name: str, tensor: Tensor, leader: str, device: torch.device) -> None:
    """A tensor on ``device``, which is that of the argument or parameter ``leader``.

    Raises:
        ValueError: it is on another device.
    """
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; want the device of {leader}, {device}")


def check_floating(optional: Collection[str] = (), /, **tensors: Tensor | None) -> None:
    """Dense tensors of the dtypes that vqfast computes in, all on one device; ``optional`` ones may be None.

    Raises:
        TypeError: a value isn't a dense tensor or has another dtype.
        ValueError: a tensor is on another device than the first.
    """
    device, leader = None, ""
    for name, value in tensors.items():
        if value is None and name in optional:
            continue
        tensor = check_tensor(name, value)
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} has dtype {tensor.dtype}; want {_dtypes()}")
        if device is None:
            device, leader = tensor.device, name
        elif tensor.device != device:
            check_device(name, tensor, leader, device)


def check_channels(z_e: Tensor, channel_dim: int, embedding_dim: int | None = None) -> None:
    """``embedding_dim`` channels, or any number, at ``channel_dim`` of two dimensions or more.

    Raises:
        TypeError: ``channel_dim`` isn't an integer.
        ValueError: the shape doesn't fit.
    """
    if type(channel_dim) is not int:
        check_integer("channel_dim", channel_dim, -z_e.ndim, z_e.ndim - 1)
    if z_e.ndim < 2 or not -z_e.ndim <= channel_dim < z_e.ndim:
        raise ValueError(
            f"z_e has shape {tuple(z_e.shape)}; want two dimensions or more, channels at {channel_dim}"
        )
    if embedding_dim is not None and z_e.shape[channel_dim] != embedding_dim:
        raise ValueError(
            f"z_e has {z_e.shape[channel_dim]} channels at dimension {channel_dim} of {tuple(z_e.shape)}; "
            f"want embedding_dim = {embedding_dim}"
        )


def check_mask(mask: Tensor | None, z_e: Tensor, channel_dim: int) -> None:
    """A bool ``mask`` of the shape of ``z_e`` without its channels, on its device; or None.

    Raises:
        TypeError: ``mask`` isn't a dense bool tensor.
        ValueError: it has another shape, or is on another device.
    """
    if mask is None:
        return
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; want a bool tensor")
    shape = z_e.movedim(channel_dim, -1).shape[:-1]
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; want {tuple(shape)}, one for each vector")
    check_device("mask", mask, "the vectors", z_e.device)


def check_indices(name: str, indices: Tensor, num_embeddings: int, *, minimum: int = 0) -> bool:
    """Integers from ``minimum`` to ``num_embeddings - 1``. Returns whether one may be negative.

    Raises:
        TypeError: ``indices`` isn't a dense integer tensor.
        ValueError: an index is out of range. Values aren't checked where they can't be read: under
            torch.compile, torch.export, torch.jit.trace and CUDA graph capture.
    """
    check_tensor(name, indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {indices.dtype}; want an integer one")
    unreadable = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or (indices.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    if unreadable or indices.numel() == 0 or indices.is_meta:
        return minimum < 0
    low, high = map(int, behind_transforms(indices).long().aminmax())
    if low < minimum or high >= num_embeddings:
        raise ValueError(f"{name} has values {low}..{high}; want {minimum}..{num_embeddings - 1}")
    return low < 0
