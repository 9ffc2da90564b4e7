"""Shared by the launches of Triton kernels: dtypes, the architecture, the current device, kept kernels."""

from __future__ import annotations

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
MAX_PLANS = 1024
Made = TypeVar("Made")
_NOTHING = contextlib.nullcontext()


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of a GPU's architecture, ``sm_90``, ``gfx942`` ...; the interpreter counts as ``sm_90``."""
    if device.type == "cpu":
        return "sm_90"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one, on which kernels are launched."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


class Kept:
    """A kernel with its constants, launched in a tenth of the time that Triton takes to look at arguments.

    What the first launch compiles is kept: later ones must have arguments of the same dtypes and alignments,
    and of the same sizes where the kernel is compiled for them. They may give a tensor as its address.
    """

    def __init__(self, kernel: Any, options: dict[str, Any]) -> None:
        """``options``: the constants, which come last among the kernel's arguments, and Triton's options."""
        # Sums of products may be fused: Triton 3.9 warns that its default will change.
        self.kernel, self.options = kernel, {"enable_fp_fusion": True, **options}
        self.compiled: Any = None
        self.constants: tuple[Any, ...] = ()

    def __call__(self, blocks: int, arguments: tuple[Any, ...], columns: int = 1, layers: int = 1) -> None:
        """Launches it on the current device, with all arguments that aren't constants.

        Raises:
            RuntimeError: it is new, and CUDA doesn't load it while a graph is being captured.
        """
        compiled = self.compiled
        if compiled is None:
            try:
                compiled = self.kernel[blocks, columns, layers](*arguments, **self.options)
            except Exception as error:
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    what = f"{self.kernel.__name__}, a kernel that is new, can't be loaded while a CUDA graph"
                    raise RuntimeError(
                        f"{what} is captured: make the same call before the capture"
                    ) from error
                raise
            if compiled is not None and not _watched():  # in the interpreter nothing is compiled
                self.constants = tuple(self.options[name] for name in self.kernel.arg_names[len(arguments) :])
                self.compiled = compiled
            return
        active: Any = driver.active
        stream = active.get_current_stream(active.get_current_device())
        compiled.run(
            blocks, columns, layers, stream, compiled.function, compiled.packed_metadata, None, None, None,
            *arguments, *self.constants,
        )  # fmt: skip


Launched = tuple[Kept, int, tuple[Any, ...]]  # with its blocks and arguments


def plan_key(what: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Any, ...]:
    """The key of what a launch takes from shapes and strides, on the device of the first tensor."""
    first = tensors[0]
    assert first is not None
    return first.device, *what, *[
        tensor if tensor is None else (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() % 16)
        for tensor in tensors
    ]  # fmt: skip


def remember(plans: dict[tuple[Any, ...], Any], key: tuple[Any, ...], plan: Made) -> Made:
    """Keeps a plan, and with it its kernels; of too many all are forgotten."""
    if len(plans) == MAX_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def compile_together(tensor: Tensor, *launches: Launched) -> None:
    """Compiles kernels for the tensor's device, the first two at once, and launches none.

    More at once only share Python's lock, and read all of Triton for the key of its cache once more each.
    """

    def compiled(launched: Launched) -> None:
        kept, blocks, arguments = launched
        with on(tensor), contextlib.suppress(Exception):  # the launch will raise it again
            kept.kernel.warmup(*arguments, grid=(blocks, 1), **kept.options)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, launches))


def _watched() -> bool:
    """Whether a profiler asks Triton to tell it of launches; those of kept kernels it isn't told of."""
    hook = knobs.runtime.launch_enter_hook
    return hook is not None and bool(getattr(hook, "calls", True))
