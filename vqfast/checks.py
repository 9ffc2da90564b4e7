"""The one place that words an error about an argument: "NAME is GOT; want WANTED".

What has the wrong type is a TypeError, what has the wrong value a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

import torch
from torch import Tensor

from vqfast.ops.define import behind_transforms, in_functorch
from vqfast.ops.registry import FLOATS


def check_integer(name: str, value: object, least: int = 1, end: int | None = None) -> None:
    """An integer, no bool, in ``least..end - 1``; without an end, below 2^63 as torch's sizes are.

    Raises:
        TypeError: ``value`` isn't an integer.
        ValueError: it is out of range.
    """
    if type(value) is int and least <= value < (2**63 if end is None else end):
        return  # before any wording: calls of small ops feel it
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


def check_real(
    name: str,
    value: object,
    wanted: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """A finite number, no bool, from ``least``, above and below others; ``wanted`` says which in an error.

    Raises:
        TypeError: ``value`` isn't a number.
        ValueError: it is out of range, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; want {wanted}")
    number = float(value)
    if not (math.isfinite(number) and least <= number and above < number < below):
        raise ValueError(f"{name} is {value!r}; want {wanted}")


def check_flags(**flags: object) -> None:
    """Truth values.

    Raises:
        TypeError: one is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; want True or False")


def check_sizes(**sizes: object) -> None:
    """Positive integers, each as ``check_integer``."""
    for name, value in sizes.items():
        check_integer(name, value)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """One of several words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{name} is {value!r}; want {', '.join(most)} or {last}")


def check_dense(name: str, tensor: object) -> Tensor:
    """The same, if it is a tensor whose elements lie in memory, one by one.

    Raises:
        TypeError: it is no tensor, or a sparse, nested or mkldnn one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; want a tensor")
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{name} is a tensor of layout {kind}; want a dense one")
    return tensor


def check_floating(optional: Collection[str] = (), /, **tensors: Tensor | None) -> None:
    """Dense tensors of the dtypes that vqfast computes in, all on one device; ``optional`` ones may be None.

    Raises:
        TypeError: one is no tensor, isn't dense or has another dtype.
        ValueError: one is on another device than the first.
    """
    device = None
    for name, given in tensors.items():
        if given is None and name in optional:
            continue
        tensor = check_dense(name, given)
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} has dtype {tensor.dtype}; want {', '.join(sorted(map(str, FLOATS)))}")
        if device is None:
            device, leader = tensor.device, name
        elif tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; want the device of {leader}, {device}")


def check_channels(z_e: Tensor, channel_dim: int, embedding_dim: int) -> None:
    """``embedding_dim`` channels at ``channel_dim`` of two dimensions or more.

    Raises:
        TypeError: ``channel_dim`` isn't an integer.
        ValueError: the shape doesn't fit.
    """
    if type(channel_dim) is not int:
        check_integer("channel_dim", channel_dim, -z_e.ndim, z_e.ndim)
    if z_e.ndim < 2 or not -z_e.ndim <= channel_dim < z_e.ndim:
        raise ValueError(
            f"z_e has shape {tuple(z_e.shape)}; want two dimensions or more, channels at {channel_dim}"
        )
    if z_e.shape[channel_dim] != embedding_dim:
        raise ValueError(
            f"z_e has {z_e.shape[channel_dim]} channels at dimension {channel_dim} of {tuple(z_e.shape)}; "
            f"want embedding_dim = {embedding_dim}"
        )


def check_mask(mask: Tensor | None, z_e: Tensor, channel_dim: int) -> None:
    """Bool ``mask`` of the shape of ``z_e`` without its channels, or ``None``.

    Raises:
        TypeError: it isn't a dense bool tensor.
        ValueError: it has another shape.
    """
    if mask is None:
        return
    check_dense("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; want a bool tensor")
    shape = z_e.movedim(channel_dim, -1).shape[:-1]
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; want {tuple(shape)}, one for each vector")


def check_codes(name: str, codes: Tensor, num_embeddings: int, *, least: int = 0) -> None:
    """Integer codes in ``least..num_embeddings - 1``.

    Raises:
        TypeError: ``codes`` isn't a dense integer tensor.
        ValueError: a code is out of range. No value can be read, and none is looked at, under torch.compile,
            torch.export, torch.jit.trace or CUDA graph capture.
    """
    check_dense(name, codes)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {codes.dtype}; want an integer one")
    unreadable = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (codes.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    if unreadable or codes.numel() == 0 or codes.is_meta:
        return
    low, high = map(int, behind_transforms(codes).long().aminmax())
    if low < least or high >= num_embeddings:
        raise ValueError(f"{name} has values {low}..{high}; want {least}..{num_embeddings - 1}")


def check_untransformed() -> None:
    """Raises RuntimeError under a transform of ``torch.func``, where a module can't change its state."""
    if in_functorch():
        raise RuntimeError(
            "a codebook learns in place, which torch.func's transforms don't allow; call eval() or freeze() "
            "first, or let it learn outside of them"
        )
