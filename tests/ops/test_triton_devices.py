"""Launches on a machine with several GPUs, of which there are none: a driver that notes what is current."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("triton")

from benchmarks import sweep
from vqfast.ops import launch, probe, registry
from vqfast.ops.masked_conv import triton as conv
from vqfast.ops.nearest import triton as nearest
from vqfast.ops.residual import triton as residual
from vqfast.sampling.executors import triton as sampler
from vqfast.sampling.executors import triton_kernel
from vqfast.sampling.executors.probe import Part, probe_request
from vqfast.sampling.executors.triton_tunings import Launch, Tuning
from vqfast.sampling.wavefront import raster

HERE, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)


class OnOther(Tensor):
    """Memory of the CPU that says it is on the GPU that isn't the current one."""

    device = property(lambda self: OTHER)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def on_other(*shape: int) -> Any:
    return torch.zeros(shape).as_subclass(OnOther)


class MakesOnOther(TorchFunctionMode):
    """What is asked to be on the other GPU, or moved there, is memory of the CPU that says so."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if OTHER not in (*arguments, *options.values()):
            return function(*arguments, **options)
        arguments = [torch.device("cpu") if value is OTHER else value for value in arguments]
        options = {name: torch.device("cpu") if value == OTHER else value for name, value in options.items()}
        return function(*arguments, **options).as_subclass(OnOther)


class Driver:
    """Its launches are noted as (kernel, device, stream, whether Triton was asked)."""

    def __init__(self) -> None:
        self.current = HERE.index
        self.launches: list[tuple[str, int, int, bool]] = []
        self.arguments: dict[str, tuple[Any, ...]] = {}

    def get_current_device(self) -> int:
        return self.current

    def get_current_stream(self, device: int) -> int:
        return 100 + device

    def note(self, name: str, stream: int, asked: bool) -> None:
        self.launches.append((name, self.current, stream, asked))


class Kernel:
    """A jitted function of Triton, as far as launches see it."""

    def __init__(self, kernel: Any, driver: Driver) -> None:
        self.name, self.jitted = kernel.__name__, kernel
        self.driver, self.arg_names, self.blocks = driver, kernel.arg_names, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*arguments: Any, **_: Any) -> Any:
            self.driver.arguments[self.name] = arguments
            stream = self.driver.get_current_stream(self.driver.get_current_device())
            self.driver.note(self.name, stream, True)
            return SimpleNamespace(run=self.run, function=None, packed_metadata=None)

        self.blocks = grid[0]
        return call

    def run(self, x: int, y: int, z: int, stream: int, *arguments: Any) -> None:
        assert len(arguments) == 5 + len(self.arg_names)
        self.driver.arguments[self.name] = arguments[5:]
        self.driver.note(self.name, stream, False)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    fake = Driver()

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            self.before, fake.current = fake.current, self.device.index

        def __exit__(self, *_: object) -> None:
            fake.current = self.before

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: fake.current)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=fake))
    monkeypatch.setattr(nearest, "_plans", {})
    monkeypatch.setattr(residual, "_plans", {})
    monkeypatch.setattr(conv, "_plans", {})
    launch.architecture.cache_clear()
    for module, names in (
        (nearest, ("_prepare", "_search")),
        (residual, ("_count", "_segments", "_backward")),
        (conv, ("_convolve", "_weight_gradient", "_sum_pieces", "_gate")),
        (triton_kernel, ("sample",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Kernel(getattr(module, name), fake))
    yield fake
    launch.architecture.cache_clear()


def test_a_search_launches_twice_on_the_device_and_stream_of_its_vectors(driver) -> None:
    x, codebook = on_other(70, 8), on_other(9, 8)
    for asked in (True, False, False):
        nearest.nearest(x, codebook)
        assert driver.launches == [("_prepare", 1, 101, asked), ("_search", 1, 101, asked)]
        assert driver.current == 0
        driver.launches.clear()
    nearest.nearest(on_other(70, 9), on_other(9, 9))  # another size is another kernel
    assert [asked for *_, asked in driver.launches] == [True, True]


def test_a_convolution_asks_triton_once_for_all_that_its_kernel_depends_on(driver, monkeypatch) -> None:
    monkeypatch.setattr(conv.layout, "empty", lambda x, channels: on_other(len(x), channels, *x.shape[2:]))
    x, weight, residual = on_other(2, 4, 6, 3), on_other(4, 4, 3, 3), on_other(2, 4, 6, 3)
    shifted = on_other(145)[1:].view(2, 4, 6, 3)

    def asked(x, residual=None, activation="none", dilation=1) -> bool:
        driver.launches.clear()
        conv.masked_conv2d(x, weight, None, None, residual, 5, [1, 1], [dilation, 1], activation)
        ((name, device, stream, asked),) = driver.launches
        assert (name, device, stream) == ("_convolve", 1, 101)
        return asked

    others = [
        {"residual": residual},
        {"activation": "relu"},
        {"dilation": 2},
        {"x": x.transpose(2, 3)},
        {"x": shifted},
        {"x": on_other(3, 4, 6, 3)},
    ]
    for changed in ({}, *others):
        assert [asked(**{"x": x, **changed}) for _ in range(3)] == [True, False, False]
    sweep.with_precision("tf32", lambda: asked(x))
    assert driver.launches[0][3] != (conv.arithmetic(x) == "tf32")


def test_gradients_and_gates_ask_triton_once_for_what_their_kernels_depend_on(driver, monkeypatch) -> None:
    monkeypatch.setattr(conv.layout, "empty", lambda x, channels: on_other(len(x), channels, *x.shape[2:]))
    x, weight, wide = on_other(2, 4, 6, 3), on_other(8, 4, 3, 3), on_other(2, 8, 6, 3)
    shifted = on_other(145)[1:].view(2, 4, 6, 3)

    def asked(call) -> list[bool]:
        driver.launches.clear()
        call()
        assert {launched[1:3] for launched in driver.launches} == {(1, 101)}
        return [asked for name, *_, asked in driver.launches if name != "_convolve"]

    def gradients(x=x, grad=wide, weight=weight, taps=5, dilation=1) -> None:
        conv.masked_conv2d_backward(grad, x, weight, taps, [1, 1], [dilation, 1])

    def gates(x=wide, extra=None, grad=None) -> None:
        conv._run_gate(x, extra, grad, on_other(len(x), x.shape[1] if grad is not None else 4, *x.shape[2:]))

    others = [
        {"x": x.transpose(2, 3).contiguous().transpose(2, 3)},
        {"x": shifted},
        {"grad": wide.transpose(2, 3).contiguous().transpose(2, 3)},
        {"weight": on_other(8, 4, 3, 5)},
        {"taps": 4},
        {"dilation": 2},
        {"x": on_other(3, 4, 6, 3), "grad": on_other(3, 8, 6, 3)},
    ]
    for changed in ({}, *others):
        call = partial(gradients, **changed)
        assert [asked(call) for _ in range(2)] == [[True] * 2, [False] * 2]
    gated = [{"extra": wide}, {"extra": on_other(2, 8, 1, 1).expand(2, 8, 6, 3)}, {"grad": x}]
    for changed in ({}, *gated):
        assert [asked(partial(gates, **changed)) for _ in range(2)] == [[True], [False]]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_training_step_asks_triton_once_for_what_its_kernels_depend_on(driver, deterministic) -> None:
    z, codebook, zero = on_other(70, 8), on_other(9, 8), on_other(1)[0]
    shifted = on_other(561)[1:].view(70, 8)

    def step(z=z, codebook=codebook) -> list[tuple[str, bool]]:
        driver.launches.clear()
        _, indices, *_ = residual.quantize_stage(z, codebook, 1, True)
        residual.backward_stage(z, zero, zero, z, codebook, indices * 0, 1)
        assert {launched[1:3] for launched in driver.launches} == {(1, 101)}
        return [(name, asked) for name, *_, asked in driver.launches]

    others = [
        {"z": on_other(71, 8)},
        {"z": on_other(8, 70).T},
        {"z": shifted},
        {"codebook": on_other(8, 9).T},
        {"z": on_other(70, 9), "codebook": on_other(9, 9)},
    ]
    summed = ["_segments"] * deterministic
    names = ["_prepare", "_search", "_count", *summed, "_backward", *["_count"] * deterministic, *summed]
    torch.use_deterministic_algorithms(deterministic)
    try:
        for changed in ({}, *others):
            first, second = step(**changed), step(**changed)
            assert [name for name, _ in first] == [name for name, _ in second] == names
            assert all(asked for name, asked in first if name in ("_backward", "_search"))
            assert not any(asked for _, asked in second)
    finally:
        torch.use_deterministic_algorithms(False)


def test_under_a_profiler_of_triton_nothing_is_kept(driver, monkeypatch) -> None:
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(launch, "knobs", SimpleNamespace(runtime=SimpleNamespace(launch_enter_hook=hook)))
    for _ in range(2):
        nearest.nearest(on_other(70, 8), on_other(9, 8))
    assert [asked for *_, asked in driver.launches] == [True] * 4


def test_one_kernel_serves_all_numbers_of_vectors_and_codes(driver) -> None:
    """What Triton compiles for: dtypes, ones and multiples of 16 among what isn't exempt."""
    import inspect

    seen = []
    for kernel in (nearest._prepare, nearest._search):
        names = list(inspect.signature(kernel.jitted.fn).parameters)
        exempt = set(kernel.jitted.do_not_specialize)
        for n, k in ((70, 9), (64, 512), (2, 1), (4096, 1000)):
            driver.arguments.clear()
            nearest.nearest(on_other(n, 20), on_other(k, 20))
            given = dict(zip(names, driver.arguments[kernel.name], strict=False))
            numbers = {name: value for name, value in given.items() if isinstance(value, int)}
            seen.append({name: (v == 1, v % 16 == 0) for name, v in numbers.items() if name not in exempt})
        assert all(each == seen[0] for each in seen), kernel.name
        seen.clear()


def test_training_steps_and_convolutions_launch_there_too(driver, monkeypatch) -> None:
    monkeypatch.setattr(conv.layout, "empty", lambda x, channels: on_other(len(x), channels, *x.shape[2:]))
    z, codebook = on_other(70, 8), on_other(9, 8)
    out = residual.quantize_stage(z, codebook, 1, True)
    residual.backward_stage(z, z.sum(), z.sum(), z, codebook, out[1] * 0, 1)
    x, weight = on_other(2, 4, 3, 3), on_other(8, 4, 3, 3)
    geometry = (5, [1, 1], [1, 1])
    conv.masked_conv2d(x, weight, None, None, None, *geometry, "gate")
    conv.masked_conv2d_backward(on_other(2, 8, 3, 3), x, weight, *geometry)
    conv.gate(x, None)
    assert {name for name, *_ in driver.launches} == {
        *("_prepare", "_search", "_count", "_backward"),
        *("_convolve", "_weight_gradient", "_sum_pieces", "_gate"),
    }
    assert {launched[1:3] for launched in driver.launches} == {(1, 101)}
    assert driver.current == 0


@pytest.mark.parametrize("top_k", [None, 5])
def test_rows_of_a_sample_are_drawn_there_too(driver, monkeypatch, top_k) -> None:
    """Blocks that wait for each other, and a draw in PyTorch between launches."""
    waited = []
    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(record_event=lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: waited.append(device) or stream)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    tuning = Tuning(Launch(1, 16, 16, 32, 16, 4, 1), Launch(1, 16, 1, 16, 16, 4, 1))
    with MakesOnOther():
        request = probe_request(OTHER, torch.float32, Part(1))
        request.draw = replace(request.draw, top_k=top_k)
        sampler.Sampling(request, tuning, raster(request.program, *request.grid)).draw()
    height, width = request.grid
    number = height * (2 if top_k is None else 1 + 2 * width)
    asked = [True, True] + [False] * (number - 2)  # each of the two kernels once
    assert driver.launches == [("sample", 1, 101, each) for each in asked]
    assert waited == [OTHER] * height
    assert driver.current == 0


def test_more_codebooks_than_the_second_axis_of_a_grid_has(monkeypatch) -> None:
    launches = []
    monkeypatch.setattr(nearest.Kept, "__call__", lambda self, blocks, _: launches.append(blocks))
    nearest.nearest(torch.zeros(70_000, 2, 1), torch.zeros(70_000, 1, 1))
    assert launches == [70_000, 70_000]  # of the first axis, which has 2^31 - 1


def test_a_graph_without_a_warm_up_is_an_error_that_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(probe, "_verdicts", {})
    with pytest.raises(RuntimeError, match=r"triton nearest of torch.float32 with 8 .* before the capture"):
        probe.verdict("nearest", "triton", HERE, torch.float32, 8, None)
    assert not probe._verdicts
    probe._verdicts["nearest", "triton", HERE, torch.float32, 8, None] = None
    assert probe.verdict("nearest", "triton", HERE, torch.float32, 8, None) is None


@pytest.mark.parametrize("captures", [False, True])
def test_a_kernel_that_is_not_loaded_says_whether_a_capture_is_why(monkeypatch, captures) -> None:
    """As on a GPU that a record vouches for, where no call is compared first."""

    class Unloaded:
        __name__ = "_convolve"

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            raise ValueError("operation not permitted")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    error, said = (
        (RuntimeError, "_convolve.* before the capture") if captures else (ValueError, "not permitted")
    )
    with pytest.raises(error, match=said):
        launch.Kept(Unloaded(), {})(1, ())


@pytest.mark.parametrize("arch, refused", [("gfx90a:sramecc+:xnack-", True), ("gfx942", False)])
def test_a_gpu_that_takes_small_numbers_for_zero_is_refused(monkeypatch, arch, refused) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    properties = SimpleNamespace(gcnArchName=arch)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for op in ("nearest", "residual"):
        reason = registry.refusal(op, "triton", on_other(1))
        assert (reason is not None and "gfx90a takes small fp16 numbers for zero" in reason) is refused
    assert registry.refusal("masked_conv", "triton", on_other(1)) is None
