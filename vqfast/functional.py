"""The ops as functions: checks at the door, then the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqfast.ops.masked_conv import layout
from vqfast.ops.masked_conv.op import gate as _gate
from vqfast.ops.masked_conv.op import masked_conv2d as _masked_conv2d
from vqfast.ops.nearest.op import nearest as _nearest
from vqfast.ops.quantize.op import quantize as _quantize
from vqfast.ops.residual.op import projected_codes as _projected_codes
from vqfast.ops.residual.op import residual_codes as _residual_codes
from vqfast.ops.residual.op import residual_quantize as _residual_quantize


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; want a tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; want a floating-point one")


def check_channels(z_e: Tensor, channel_dim: int, embedding_dim: int) -> None:
    """Floating-point ``z_e`` with ``embedding_dim`` channels at ``channel_dim``.

    Raises:
        TypeError: ``z_e`` isn't a floating-point tensor.
        ValueError: the shape doesn't fit.
    """
    _check_floating("z_e", z_e)
    if z_e.ndim < 2 or not -z_e.ndim <= channel_dim < z_e.ndim:
        raise ValueError(
            f"z_e has shape {tuple(z_e.shape)}; want two dimensions or more, channels at {channel_dim}"
        )
    if z_e.shape[channel_dim] != embedding_dim:
        raise ValueError(
            f"z_e has {z_e.shape[channel_dim]} channels at dimension {channel_dim} of {tuple(z_e.shape)}; "
            f"want embedding_dim = {embedding_dim}"
        )


def check_codes(name: str, codes: Tensor, num_embeddings: int, *, least: int = 0) -> None:
    """Integer codes in ``least..num_embeddings - 1``.

    Raises:
        TypeError: ``codes`` isn't an integer tensor.
        ValueError: a code is out of range (not looked at under torch.compile or CUDA graph capture,
            where no value can be read).
    """
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} is a {type(codes).__name__}; want an integer tensor")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {codes.dtype}; want an integer one")
    unreadable = torch.compiler.is_compiling() or (codes.is_cuda and torch.cuda.is_current_stream_capturing())
    if codes.numel() == 0 or unreadable or codes.is_meta:
        return
    low, high = map(int, codes.long().aminmax())
    if low < least or high >= num_embeddings:
        raise ValueError(f"{name} has values {low}..{high}; want {least}..{num_embeddings - 1}")


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """``x`` with vectors of length 1 along ``dim``, in float32 or wider.

    A zero vector stays, and passes its gradient on.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


def nearest_code(
    x: Tensor, codebook: Tensor, metric: str = "l2", return_distance: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Index of each vector's nearest code: ``argmin_k ||x_n - e_k||_2``, the lowest ``k`` on exact ties.

    Exact: the argmin of the inputs at their given values, whatever their offset or scale. A row of ``x``
    with a NaN or an infinity gets index 0 and distance NaN.

    Args:
        x: ``(..., N, D)``, floating point.
        codebook: ``(..., K, D)``; its leading dimensions are codebooks side by side (heads, groups) and
            broadcast with those of ``x``.
        metric: ``"l2"``, or ``"cosine"`` for the smallest angle, ``argmax_k cos(x_n, e_k)``. A zero vector
            has no angle: as a row it gets index 0, as a code it is chosen only where all codes are zero;
            its cosines count as 0. Codes of one direction tie up to rounding in float64, of
            which this metric takes copies.
        return_distance: whether to return the distances too: ``||x_n - e_k||_2`` (not squared), or
            ``1 - cos``, taken from float64 differences; differentiable by both inputs.

    Returns:
        int64 ``(..., N)``, or with ``return_distance`` a pair with the distances ``(..., N)``, float32 or
        wider.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit, or ``metric`` is unknown.
    """
    _check_floating("x", x)
    _check_floating("codebook", codebook)
    if metric not in ("l2", "cosine"):
        raise ValueError(f"metric is {metric!r}; want 'l2' or 'cosine'")
    if x.ndim < 2 or codebook.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and codebook {tuple(codebook.shape)}; want (.., N, D), (.., K, D)"
        )
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} channels and codebook {codebook.shape[-1]}; want the same D")
    if codebook.shape[-2] < 1 or codebook.shape[-1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want K >= 1 and D >= 1")
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    lead = x.shape[:-2]
    if codebook.ndim > 2:
        try:
            lead = torch.broadcast_shapes(lead, codebook.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"x {tuple(x.shape)} and codebook {tuple(codebook.shape)} don't broadcast over their "
                "leading dims"
            ) from None
        x = x.expand(*lead, *x.shape[-2:])
    if metric == "l2":
        indices = _nearest(x, codebook)
    else:  # between unit vectors the nearest code is that of the smallest angle
        x, codebook = unit(x.double()), unit(codebook.double())
        is_zero = (codebook == 0).all(-1, keepdim=True)
        indices = _nearest(x, torch.where(is_zero, 4, codebook))  # out of every unit vector's reach
        indices = torch.where((x == 0).all(-1), 0, indices)
    if not return_distance:
        return indices
    codes = codebook.expand(*lead, *codebook.shape[-2:]).take_along_dim(indices.unsqueeze(-1), -2)
    if metric == "l2":
        distance = torch.linalg.vector_norm(x.double() - codes.double(), dim=-1)
    else:
        distance = (1 - (x * codes).sum(-1)).clamp(min=0)
    return indices, torch.where(x.isfinite().all(-1), distance, torch.nan).to(dtype)


def nearest_unit_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest of the codes divided by their lengths: ``argmin_k ||x_n - e_k / ||e_k|| ||_2``.

    As ``nearest_code(x, torch.nn.functional.normalize(codebook, dim=-1))``, which a CPU need not hold.

    Args:
        x: ``(..., N, D)``, floating point; as it is.
        codebook: ``(K, D)``. Lengths below 1e-12 count as that.

    Returns:
        int64 ``(..., N)``.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    _check_floating("x", x)
    _check_floating("codebook", codebook)
    if x.ndim < 2 or codebook.ndim != 2 or x.shape[-1] != codebook.shape[-1] or 0 in codebook.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and codebook {tuple(codebook.shape)}; want (.., N, D), (K, D)"
        )
    lengths = torch.linalg.vector_norm(codebook.detach(), dim=-1).clamp_min(1e-12)
    return _nearest(x, codebook, lengths)


class Quantized(NamedTuple):
    """What ``quantize`` returns; see there."""

    quantized: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    counts: Tensor
    sums: Tensor


def quantize(z_e: Tensor, codebook: Tensor, channel_dim: int = 1, statistics: bool = False) -> Quantized:
    """Quantises ``z_e`` with the straight-through gradient (van den Oord et al. 2017, section 3.2).

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebook: ``(K, D)``.
        statistics: whether to fill ``counts`` and ``sums`` (they have no gradient).

    Returns:
        ``quantized``: as ``z_e``; backward copies its gradient to ``z_e``. A vector with a NaN or an infinity
        quantises to NaN.
        ``indices``: int64, the shape of ``z_e`` without its channels.
        ``codebook_loss``, ``commitment_loss``: ``mean((z_e - z_q)^2)``, differentiable by the codebook only
        and by ``z_e`` only; float32 or wider.
        ``counts`` int64 ``(K,)``, ``sums`` ``(K, D)``: number and sum of the vectors of each code.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    _check_floating("codebook", codebook)
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want (K, D) with K, D >= 1")
    check_channels(z_e, channel_dim, codebook.shape[1])
    return Quantized(*_quantize(z_e, codebook, channel_dim, statistics))


def residual_quantize(
    z_e: Tensor, codebooks: Tensor, channel_dim: int = 1, statistics: bool = False
) -> Quantized:
    """Quantises ``z_e`` by Q stages, each coding what the ones before it left over, in one pass.

    Source: Zeghidour et al. 2021, SoundStream (arXiv 2107.03312), algorithm 1.

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebooks: ``(Q, K, D)``; one for all stages may be expanded.
        statistics: whether to fill ``counts`` and ``sums`` (they have no gradient).

    Returns:
        As ``quantize``, but ``quantized`` is the sum of the stages' codes, ``indices`` has Q last, and the
        others have it first: losses ``(Q,)``, ``counts (Q, K)``, ``sums (Q, K, D)``, of what each stage was
        given. A stage's losses differentiate by its own codebook and by ``z_e``, not by the codes before it.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    _check_floating("codebooks", codebooks)
    if codebooks.ndim != 3 or 0 in codebooks.shape:
        raise ValueError(f"codebooks has shape {tuple(codebooks.shape)}; want (Q, K, D) with Q, K, D >= 1")
    check_channels(z_e, channel_dim, codebooks.shape[2])
    return Quantized(*_residual_quantize(z_e, codebooks, channel_dim, statistics))


def _check_codebooks(codebooks: Sequence[Tensor]) -> list[Tensor]:
    codebooks = list(codebooks)
    for book in codebooks:
        _check_floating("codebooks", book)
    if not codebooks:
        raise ValueError("codebooks are none; want one or more")
    first = codebooks[0]
    alike = all((book.shape, book.dtype) == (first.shape, first.dtype) for book in codebooks)
    if not alike or first.ndim != 2 or 0 in first.shape:
        got = ", ".join(f"{tuple(book.shape)} {book.dtype}" for book in codebooks)
        raise ValueError(f"codebooks are {got}; want all (K, D) of one dtype with K, D >= 1")
    return codebooks


def _check_device(z_e: Tensor, *others: Tensor) -> None:
    if any(tensor.device != z_e.device for tensor in others):
        raise ValueError(f"z_e is on {z_e.device}, others on {others[0].device}; want one device")


def residual_codes(z_e: Tensor, codebooks: Sequence[Tensor], channel_dim: int = 1) -> Tensor:
    """The indices of ``residual_quantize`` alone, for encoding.

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebooks: each stage's, ``(K, D)``, wherever they lie in memory.

    Returns:
        int64, the shape of ``z_e`` without its channels, and Q last.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    codebooks = _check_codebooks(codebooks)
    check_channels(z_e, channel_dim, codebooks[0].shape[1])
    _check_device(z_e, *codebooks)
    return _residual_codes(z_e, codebooks, channel_dim)


def projected_codes(
    z_e: Tensor,
    codebooks: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    unit: bool = False,
    details: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of residual stages that each stand between linear maps, in one pass and without gradients.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (DAC), section 3.2.

    Args:
        z_e: ``(B, C, T)``, floating point.
        codebooks: each stage's, ``(K, D)``.
        maps: each stage's weight ``(D, C)`` and bias ``(D,)`` into the width of its codes, weight ``(C, D)``
            and bias ``(C,)`` back.
        unit: whether a stage finds the code of the smallest angle, by vectors divided by their lengths.
        details: whether to return what stands after the indices.

    Returns:
        int64 ``(B, T, Q)``; ``(B, Q * D, T)``, what each stage was given; and as ``z_e``, the sum of what
        came back of all stages. The latter two have no sample without ``details``.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: shapes or dtypes don't fit.
    """
    codebooks = _check_codebooks(codebooks)
    _check_floating("z_e", z_e)
    if z_e.ndim != 3:
        raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want (B, C, T)")
    maps = [list(stage) for stage in maps]
    flat = [tensor for stage in maps for tensor in stage]
    for tensor in flat:
        _check_floating("maps", tensor)
    channels, width = z_e.shape[1], codebooks[0].shape[1]
    wanted = [(width, channels), (width,), (channels, width), (channels,)]
    got = [[tuple(tensor.shape) for tensor in stage] for stage in maps]
    if got != [wanted] * len(codebooks):
        raise ValueError(f"maps have shapes {got}; want {len(codebooks)} times {wanted}")
    if len(dtypes := {tensor.dtype for tensor in (z_e, *codebooks, *flat)}) > 1:
        raise ValueError(f"the arguments have dtypes {sorted(map(str, dtypes))}; want one")
    _check_device(z_e, *codebooks, *flat)
    with torch.no_grad():
        return _projected_codes(z_e, codebooks, flat, unit, details)


def perplexity(indices: Tensor, num_embeddings: int) -> Tensor:
    """``exp(-sum_k p_k log p_k)`` of the codes' histogram: 1 when one code is used, K when all are alike.

    Args:
        indices: integer, any shape, values in ``0..num_embeddings - 1``.

    Returns:
        A float32 scalar; NaN for no indices.

    Raises:
        TypeError, ValueError: as ``check_codes``.
    """
    check_codes("indices", indices, num_embeddings)
    p = torch.bincount(indices.long().flatten(), minlength=num_embeddings).double() / indices.numel()
    return torch.special.entr(p).sum().exp().float()


def kernel_shape(kernel_size: int, mask_type: str, stack: str) -> tuple[int, int]:
    """``(kh, kw)`` of the weight of a masked convolution ``kernel_size`` wide; see ``masked_conv2d``."""
    before = kernel_size // 2 + (mask_type == "B")
    shapes = {
        "full": (kernel_size, kernel_size),
        "vertical": (before, kernel_size),
        "horizontal": (1, before),
    }
    return shapes[stack]


def visible_taps(kernel: tuple[int, int], mask_type: str, stack: str) -> tuple[int, tuple[int, int]]:
    """``(taps, anchor)``: how many kernel positions are visible, and which one is the output's own.

    The visible ones come first in raster order.
    """
    kh, kw = kernel
    b = mask_type == "B"
    if stack == "vertical":
        return kh * kw, (kh - b, kw // 2)
    if stack == "horizontal":
        return kh * kw, (0, kw - b)
    return kh // 2 * kw + kw // 2 + b, (kh // 2, kw // 2)


def check_activation(activation: str, channels: int) -> None:
    """Raises ValueError unless ``channels`` channels can go through ``activation``."""
    if activation not in layout.ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; want one of {', '.join(layout.ACTIVATIONS)}")
    if activation == "gate" and channels % 2:
        raise ValueError(f"the gate halves the channels, of which there are {channels}; want an even number")


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype, if it is on; float64 stays, as in ``conv2d``.

    Raises:
        ValueError: their dtypes differ after all.
    """
    x, device = tensors[0], tensors[0].device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if enabled and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return tuple(None if t is None else t.to(dtype) for t in tensors)
    if len(dtypes := {t.dtype for t in tensors if t is not None}) > 1:
        raise ValueError(f"the arguments have dtypes {sorted(map(str, dtypes))}; want one")
    return tensors


def _check_added(name: str, tensor: Tensor, shapes: list[tuple[int, ...]]) -> None:
    _check_floating(name, tensor)
    if tuple(tensor.shape) not in shapes:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; want {' or '.join(map(str, dict.fromkeys(shapes)))}"
        )


def gate(x: Tensor, extra: Tensor | None = None) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the channels' halves (van den Oord et al. 2016, equation 2), in one pass.

    Args:
        x: ``(B, 2 C, H, W)``, floating point.
        extra: added before: ``(B, 2 C, 1, 1)`` or ``(B, 2 C, H, W)``.

    Returns:
        ``(B, C, H, W)``, channels last where ``x`` is.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    _check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; want (B, 2 C, H, W)")
    check_activation("gate", x.shape[1])
    if extra is not None:
        _check_added("extra", extra, [(*x.shape[:2], 1, 1), tuple(x.shape)])
    return _gate(*_autocast(x, extra))


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Causal convolution in raster order (van den Oord et al. 2016, "Conditional Image Generation").

    ``activation(conv(x) + bias + extra) + residual``, in one pass.

    Args:
        x: ``(B, C_in, H, W)``, floating point.
        weight: ``(C_out, C_in, kh, kw)``. With ``stack="full"`` an ordinary odd kernel, of which only the
            positions before the centre (``mask_type="A"``) or up to it (``"B"``) count, whatever the others
            hold. ``"vertical"``: rows above, ``(k // 2, k)``, and with ``"B"`` the own row too,
            ``(k // 2 + 1, k)``. ``"horizontal"``: the own row, ``(1, k // 2)`` to the left, and with ``"B"``
            the own position, ``(1, k // 2 + 1)``.
        bias: ``(C_out,)``.
        dilation: distance between kernel positions.
        activation: ``"none"``, ``"relu"``, or ``"gate"``: ``tanh(a) * sigmoid(b)`` of the channels' halves.
        extra: a bias of each sample, ``(B, C_out, 1, 1)``, or of each position, ``(B, C_out, H, W)``.
        residual: added last; the output's shape.

    Returns:
        ``(B, C_out, H, W)``, after the gate ``(B, C_out / 2, H, W)``; channels last where ``x`` is. ``x``
        counts as zero outside. No output reads what comes later. On a CPU and below float64, rows of which
        the kernel sees both sides are computed four neighbours at a time: there rounding (about 1e-7 of the
        row's numbers) lets outputs and gradients see up to three columns beyond the kernel.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: shapes or dtypes don't fit, or ``mask_type``, ``stack`` or ``activation`` is unknown.
    """
    _check_floating("x", x)
    _check_floating("weight", weight)
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type is {mask_type!r}; want 'A' or 'B'")
    if stack not in ("full", "vertical", "horizontal"):
        raise ValueError(f"stack is {stack!r}; want 'full', 'vertical' or 'horizontal'")
    if dilation < 1:
        raise ValueError(f"dilation is {dilation}; want 1 or more")
    shape, kernel = x.shape, weight.shape
    if len(shape) != 4 or len(kernel) != 4 or shape[1] != kernel[1] or 0 in shape[1:] or kernel[0] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "want (B, C_in, H, W) and (C_out, C_in, kh, kw)"
        )
    channels, _, kh, kw = kernel
    odd = kh == 1 if stack == "horizontal" else kw % 2 == 1 and (stack == "vertical" or kh % 2 == 1)
    if not odd or kh < 1 or kw < 1:
        raise ValueError(f"weight has a {kh}x{kw} kernel, which is no {stack} kernel of odd size")
    check_activation(activation, channels)
    batch, _, *grid = shape
    if bias is not None:
        _check_added("bias", bias, [(channels,)])
    if extra is not None:
        _check_added("extra", extra, [(batch, channels, 1, 1), (batch, channels, *grid)])
    if residual is not None:
        _check_added("residual", residual, [(batch, layout.out_channels(weight, activation), *grid)])
    taps, anchor = visible_taps((kh, kw), mask_type, stack)
    tensors = _autocast(x, weight, bias, extra, residual)
    return _masked_conv2d(*tensors, taps, anchor, (dilation, dilation), activation)[0]


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``masked_conv2d`` of one row: ``x (B, C_in, T)``, ``weight (C_out, C_in, k)`` -> ``(B, C_out, T)``.

    ``extra`` is ``(B, C_out, 1)`` or ``(B, C_out, T)``, ``residual`` has the output's shape.

    Raises:
        TypeError, ValueError: as ``masked_conv2d``.
    """
    _check_floating("x", x)
    _check_floating("weight", weight)
    if stack == "vertical":
        raise ValueError("stack is 'vertical'; one dimension has no rows above")
    if x.ndim != 3 or weight.ndim != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "want (B, C_in, T) and (C_out, C_in, k)"
        )
    for name, tensor in (("extra", extra), ("residual", residual)):
        if tensor is not None:
            _check_floating(name, tensor)
            if tensor.ndim != 3:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want three dimensions")
    extra, residual = (None if t is None else t.unsqueeze(2) for t in (extra, residual))
    x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    return masked_conv2d(x, weight, bias, mask_type, stack, dilation, activation, extra, residual).squeeze(2)
