"""Strides by which a kernel finds the vectors of a tensor in the caller's memory without a copy."""

from __future__ import annotations

from torch import Tensor

VECTOR_DIMS = 3  # kernels split a vector's number into coordinates of this many dimensions


def merged(sizes: list[int], strides: list[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Joins neighbouring dimensions where every tensor's strides allow it; the order of elements stays.

    ``strides`` holds, for each dimension, its stride in each tensor.
    """
    out_sizes: list[int] = []
    out_strides: list[tuple[int, ...]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if out_sizes and all(
            outer == size * inner for outer, inner in zip(out_strides[-1], stride, strict=True)
        ):
            out_sizes[-1] *= size
            out_strides[-1] = stride
        else:
            out_sizes.append(size)
            out_strides.append(stride)
    return out_sizes, out_strides


def _merged_dims(*tensors: Tensor) -> tuple[list[int], list[tuple[int, ...]]]:
    """``merged`` of all dimensions but the last."""
    dims = range(tensors[0].ndim - 1)
    return merged(
        list(tensors[0].shape[:-1]), [tuple(tensor.stride(dim) for tensor in tensors) for dim in dims]
    )


def walkable(*tensors: Tensor) -> bool:
    """Whether ``vector_strides`` can describe the vectors of these ``(..., D)`` tensors."""
    return len(_merged_dims(*tensors)[0]) <= VECTOR_DIMS


def vector_strides(*tensors: Tensor) -> tuple[list[int], list[list[int]]]:
    """``VECTOR_DIMS`` sizes and, for each walkable ``(..., D)`` tensor, as many strides.

    Missing dimensions come first, with size 1 and stride 0.
    """
    sizes, strides = _merged_dims(*tensors)
    missing = VECTOR_DIMS - len(sizes)
    strides = [(0,) * len(tensors)] * missing + strides
    return [1] * missing + sizes, [[stride[i] for stride in strides] for i in range(len(tensors))]
