"""How a kernel finds the rows of a tensor in the caller's memory, whatever its strides, without a copy."""

from __future__ import annotations

from torch import Tensor

ROW_DIMS = 3  # the kernels' row number is unravelled over this many dimensions


def merged(sizes: list[int], strides: list[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """The fewest dimensions of the same order: neighbours become one where every tensor's strides allow it.

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


def _rows(*tensors: Tensor) -> tuple[list[int], list[tuple[int, ...]]]:
    dims = range(tensors[0].ndim - 1)
    return merged(
        list(tensors[0].shape[:-1]), [tuple(tensor.stride(dim) for tensor in tensors) for dim in dims]
    )


def walkable(*tensors: Tensor) -> bool:
    """Whether ``ROW_DIMS`` dimensions are enough for the rows of ``(*rows, D)`` tensors."""
    return len(_rows(*tensors)[0]) <= ROW_DIMS


def row_strides(*tensors: Tensor) -> tuple[list[int], list[list[int]]]:
    """Sizes and, for each walkable ``(*rows, D)`` tensor, strides of ``ROW_DIMS`` row dimensions.

    Leading ones are filled up with size 1 and stride 0.
    """
    sizes, strides = _rows(*tensors)
    missing = ROW_DIMS - len(sizes)
    strides = [(0,) * len(tensors)] * missing + strides
    return [1] * missing + sizes, [[stride[i] for stride in strides] for i in range(len(tensors))]
