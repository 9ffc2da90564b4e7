"""Every configuration of the Triton kernels, compiled ahead of time: no GPU needed."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from benchmarks import sweep  # noqa: E402
from vqfast.ops import registry  # noqa: E402
from vqfast.ops.masked_conv import tunings as conv_tunings  # noqa: E402
from vqfast.ops.nearest import tunings  # noqa: E402
from vqfast.ops.nearest.tunings import ANY, RECHECK, SEARCH, Tuning, pick  # noqa: E402
from vqfast.sampling.executors.triton_tunings import SAMPLING, Launch  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel can't be compiled"),
]

SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a block
PRODUCT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma", "sm_100": "tcgen05.mma", "gfx942": "mfma"}
POINTERS = {
    **dict.fromkeys(["x", "codebook", "pivot", "half", "ceiling", "quantized", "errors"], "*fp32"),
    **dict.fromkeys(["sums", "grad", "out"], "*fp32"),
    **dict.fromkeys(["grad_codebook_loss", "grad_commitment_loss"], "*fp32"),
    **dict.fromkeys(["hi", "lo"], "*fp16"),
    **dict.fromkeys(["stats", "waiting"], "*i32"),
    **dict.fromkeys(["indices", "listed", "counts", "order", "ends"], "*i64"),
    "factor": "fp32",
}  # fmt: skip
UNITS = {"sd", "ed", "qd", "gd", "od", "b", "eg"}  # contiguous rows
ODD = {"N", "K", "c", "tiles", "step", "samples", "factor"}  # not multiples of 16
CASES = [
    (kernel, arch, widest)
    for kernel, table in (("_search", SEARCH), ("_recheck", RECHECK))
    for arch, lines in table.items()
    for widest in lines
]


def target_of(arch: str):
    from triton.backends.compiler import GPUTarget

    hip = arch.startswith("gfx")
    return GPUTarget("hip", arch, 64) if hip else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def build(kernel, arch: str, constants: dict, warps: int, stages: int, pointers: dict | None = None):
    """``pointers``: all that are aligned, instead of all but the ``ODD``."""
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = {**dict.fromkeys(UNITS & set(names), 1), **constants}
    types = POINTERS if pointers is None else pointers
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    odd = ODD if pointers is None else set(names) - set(pointers)
    aligned = [i for i, name in enumerate(names) if name not in constants and name not in odd]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target_of(arch), options=options)


@cache
def cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def spilled(compiled, tmp_path: Path) -> int:
    """Bytes a thread (NVIDIA), registers (AMD)."""
    if "amdgcn" in compiled.asm:
        return int(re.search(r"vgpr_spill_count: *(\d+)", compiled.asm["amdgcn"])[1])
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    )
    return int(re.search(r"STACK:(\d+)", usage.stdout)[1])


def assembly(compiled) -> str:
    return compiled.asm.get("ptx") or compiled.asm["amdgcn"]


@pytest.fixture(autouse=True)
def quiet():
    """Triton 3.9 warns about a default of 3.10 that the kernels don't rely on."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def search_kernel(kernel: str, arch: str, tuning: Tuning, channels: int):
    """``_search`` or ``_recheck``, compiled for contiguous float32 rows."""
    import triton.language as tl

    from vqfast.ops.nearest import triton as kernels

    constants = {"_search": kernels.search_constants, "_recheck": kernels.recheck_constants}[kernel]
    return build(
        getattr(kernels, kernel),
        arch,
        {"WIDE": tl.float32, "DIMS": 1, "WRITE": kernel == "_search", **constants(tuning, channels)},
        tuning.warps,
        tuning.stages,
    )


@pytest.mark.parametrize("kernel, arch, widest", CASES)
def test_search_fits_the_chip_without_spills_on_tensor_cores(kernel, arch, widest, tmp_path) -> None:
    tuning = (SEARCH if kernel == "_search" else RECHECK)[arch][widest]
    compiled = search_kernel(kernel, arch, tuning, 1024 if widest == ANY else widest)
    assert compiled.metadata.shared <= SHARED[arch]
    assert spilled(compiled, tmp_path) == 0
    product = PRODUCT[arch] if kernel == "_search" or arch == "gfx942" else "mma.sync"  # few rows: no wgmma
    assert product in assembly(compiled)


@pytest.mark.parametrize("wide", ["fp32", "fp64"])
@pytest.mark.parametrize("arch", SEARCH)
def test_channels_first_float64_and_the_small_kernels_compile(arch, wide, tmp_path) -> None:
    import triton.language as tl

    from vqfast.ops.nearest import triton as nearest
    from vqfast.ops.residual import triton as residual

    for kernel, constants in [
        (nearest._centre, {"WIDE": getattr(tl, f"float{wide[2:]}"), "BK": 128, "BD": 16}),
        (nearest._pack, {"BK": nearest.PACK_CODES, "BD": 16}),
        (residual._count, {"SUMS": True, "BM": 64, "BD": 64}),
        (residual._segments, {"DIFFERENCE": True, "BM": 64, "BD": 64}),
        (residual._backward, {"ATOMIC": True, "BM": 64, "BD": 64}),
    ]:
        if wide == "fp32":
            assert spilled(build(kernel, arch, constants, 4, 3), tmp_path) == 0
    if wide == "fp64":  # whether it spills matters little: float64 is slow there anyway
        tuning = pick(SEARCH, arch, 64)
        constants = {"WIDE": tl.float64, "DIMS": 3, "WRITE": False, "sc": 1, "sd": 1024}
        constants.update(nearest.search_constants(tuning, 64))
        assert (
            build(nearest._search, arch, constants, tuning.warps, tuning.stages).metadata.shared
            <= SHARED[arch]
        )


@pytest.mark.parametrize(
    "arch, listed", [("sm_90", "sm_90"), ("sm_89", "gfx942"), ("sm_103", "sm_100"), ("sm_120", "gfx942")]
)
def test_unlisted_architecture_takes_tunings_that_fit_it(arch, listed) -> None:
    assert pick(SEARCH, arch, 100) == SEARCH[listed][128]
    assert isinstance(tunings.pick(RECHECK, arch, 5000), Tuning)


def test_fallback_tunings_fit_consumer_chips(tmp_path) -> None:
    """gfx942's lines on an sm_86, whose blocks have 99 KB."""
    import triton.language as tl

    from vqfast.ops.nearest import triton as nearest

    tuning = pick(SEARCH, "sm_86", 256)
    constants = {"WIDE": tl.float32, "DIMS": 1, "WRITE": True, **nearest.search_constants(tuning, 256)}
    assert build(nearest._search, "sm_86", constants, tuning.warps, tuning.stages).metadata.shared <= 99 << 10


class Absent:
    """A GPU to compile for, which is all that a launch that isn't one asks of it."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self):
        return target_of(self.arch)

    def get_current_device(self) -> str:  # kernels are kept by device
        return self.arch

    def get_current_stream(self, device: str) -> int:
        return 0


@pytest.fixture
def conv_kernels(monkeypatch: pytest.MonkeyPatch):
    """Compiles for ``arch`` what the masked convolution would launch, or only its backward: (kernel's name,
    compiled) of each."""
    from triton.runtime import driver

    from vqfast.ops.masked_conv import triton as conv

    found = []

    class Launcher:
        def __init__(self, kernel) -> None:
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: found.append(
                (self.kernel.__name__, self.kernel.warmup(*args, grid=grid, **options))
            )

    for name in ("_convolve", "_weight_gradient", "_sum_pieces", "_gate"):
        monkeypatch.setattr(conv, name, Launcher(getattr(conv, name)))

    def compiled(
        arch: str,
        dtype: torch.dtype,
        layout: torch.memory_format,
        channels: int,
        grid: tuple,
        backward_only: bool = False,
    ):
        monkeypatch.setattr(conv, "architecture", lambda device: arch)
        driver.set_active(Absent(arch))
        x, wide = (torch.zeros(2, c, *grid, dtype=dtype) for c in (channels, 2 * channels))
        x, wide = x.to(memory_format=layout), wide.to(memory_format=layout)
        weight, bias = x.new_zeros(2 * channels, channels, 3, 3), x.new_zeros(2 * channels)
        sample = x.new_zeros(2, 2 * channels, 1, 1)
        geometry = (5, [1, 1], [1, 1])
        conv.masked_conv2d_backward(wide, x, weight, *geometry)
        if backward_only:
            return found
        conv.masked_conv2d(x, weight, bias, wide, x, *geometry, "gate")
        conv.masked_conv2d(x, weight, bias, sample, wide, *geometry, "relu")
        conv.gate(wide, wide)
        conv.gate_backward(x, wide, None)
        return found

    yield compiled
    if torch.cuda.is_available():
        driver.reset_active()


@pytest.fixture
def set_precision():
    """Sets what float32 convolutions compute in."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision

    def set_to(precision: str) -> None:
        conv.fp32_precision = precision

    yield set_to
    set_to(before)


ARITHMETIC = {
    conv_tunings.HALF: (torch.bfloat16, "ieee"),
    conv_tunings.TF32: (torch.float32, "tf32"),
    conv_tunings.IEEE: (torch.float32, "ieee"),
    conv_tunings.DOUBLE: (torch.float64, "ieee"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("arch", [*conv_tunings.CONVOLVE, "sm_86"])
def test_convolution_fits_the_chip_without_spills_on_tensor_cores(
    conv_kernels, set_precision, arch, arithmetic, layout, tmp_path
) -> None:
    dtype, precision = ARITHMETIC[arithmetic]
    set_precision(precision)
    product = PRODUCT.get(arch, "mma.sync")
    if product != "mfma" and arithmetic == conv_tunings.DOUBLE:
        product = "fma.rn.f64" if arch == "sm_86" else "mma.sync"
    elif product != "mfma" and arithmetic == conv_tunings.IEEE:
        product = "fma.rn.f32"
    compiled = conv_kernels(arch, dtype, layout, 128, (32, 32))
    assert len(compiled) == 7
    for name, kernel in compiled:
        assert kernel.metadata.shared <= SHARED.get(arch, 99 << 10)
        assert spilled(kernel, tmp_path) == 0
        assert name in ("_gate", "_sum_pieces") or product in assembly(kernel)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arch", conv_tunings.CONVOLVE)
def test_convolution_of_few_channels_on_an_odd_grid_compiles(conv_kernels, arch, layout, tmp_path) -> None:
    for _, kernel in conv_kernels(arch, torch.float16, layout, 3, (5, 7)):
        assert spilled(kernel, tmp_path) == 0


SAMPLERS = [
    (size, arch, widest, which)
    for size, table in SAMPLING.items()
    for arch, lines in table.items()
    for widest in lines
    for which in ("row", "position")
]


def sampler_kernel(
    size: int, arch: str, launch: Launch, which: str, head: int = 0, codes: int = 1, mixture: bool = False
):
    """Its constants, and the kernel compiled for ``size`` bytes a value, attentions of ``head`` channels."""
    from vqfast.sampling.executors import triton as executor
    from vqfast.sampling.executors import triton_kernel

    dtype, name = {2: (torch.bfloat16, "bf16"), 4: (torch.float32, "fp32"), 8: (torch.float64, "fp64")}[size]
    pointers = {
        **dict.fromkeys(["jobs", "places", "labels", "known", "numbers", "seed", "out"], "*i64"),
        **dict.fromkeys(["values", "weights", "tables"], f"*{name}"),
        **dict.fromkeys(["codes", "counters"], "*i32"),
        **{"sums": "*fp64" if size == 8 else "*fp32", "temperature": "*fp64"},
    }
    constants = executor.constants(launch, dtype, which == "position", head, codes, mixture)
    return constants, build(triton_kernel.sample, arch, constants, launch.warps, launch.stages, pointers)


@pytest.mark.parametrize("size, arch, widest, which", SAMPLERS)
def test_sampler_fits_the_chip_without_spills(size, arch, widest, which, tmp_path) -> None:
    launch = getattr(SAMPLING[size][arch][widest], which)
    constants, compiled = sampler_kernel(size, arch, launch, which)
    assert compiled.metadata.shared <= SHARED[arch]
    text = assembly(compiled)
    meets = launch.members > 1
    assert ("acquire" in text and "release" in text) == meets
    if arch == "gfx942":  # a barrier there doesn't wait until the block's stores can be read by others
        assert not meets and "global_atomic" not in text
    if size < 8:  # float64 is slow anyway
        assert spilled(compiled, tmp_path) == 0
    few = launch.rows < 64 and arch != "gfx942"  # no wgmma
    on_tensor_cores = constants["DOT"] and (size == 2 or arch == "gfx942")
    assert (("mma.sync" if few else PRODUCT[arch]) in text) == on_tensor_cores


@pytest.mark.parametrize(
    "size, arch, widest", [(2, "sm_90", 4), (4, "sm_90", ANY), (2, "gfx942", 512), (8, "sm_80", ANY)]
)
def test_sampler_with_a_draw_from_mixtures_fits_the_chip_without_spills(size, arch, widest, tmp_path) -> None:
    launch = SAMPLING[size][arch][widest].position
    compiled = sampler_kernel(size, arch, launch, "position", codes=3, mixture=True)[1]
    assert compiled.metadata.shared <= SHARED[arch]
    assert size == 8 or spilled(compiled, tmp_path) == 0


@pytest.mark.parametrize(
    "size, arch, widest, head",
    [(2, "sm_90", 4, 16), (4, "sm_90", ANY, 128), (2, "gfx942", 512, 64), (8, "sm_80", ANY, 32)],
)
def test_sampler_with_attention_fits_the_chip_without_spills(size, arch, widest, head, tmp_path) -> None:
    launch = SAMPLING[size][arch][widest].position
    compiled = sampler_kernel(size, arch, launch, "position", head)[1]
    assert compiled.metadata.shared <= SHARED[arch]
    assert size == 8 or spilled(compiled, tmp_path) == 0


# What the sweep of the GPU gate tries around a line has to compile; whether it fits the chip it finds out.


@pytest.mark.parametrize("kernel, table, channels", [("_search", SEARCH, 64), ("_recheck", RECHECK, 256)])
def test_tunings_that_the_sweep_tries_of_the_search_compile(kernel, table, channels) -> None:
    for tuning in sweep.neighbours(pick(table, "sm_90", channels)):
        assert search_kernel(kernel, "sm_90", tuning, channels).asm["cubin"]


def test_tunings_that_the_sweep_tries_of_the_convolution_compile(conv_kernels) -> None:
    half, lines = conv_tunings.HALF, (conv_tunings.CONVOLVE["sm_90"], conv_tunings.WEIGHT["sm_90"])
    for tunings_of_both in zip(*(sweep.neighbours(each[half]) for each in lines), strict=True):
        with ExitStack() as stack:
            for each, tuning in zip(lines, tunings_of_both, strict=True):
                stack.enter_context(sweep.replaced(each, half, tuning))
            compiled = conv_kernels("sm_90", torch.bfloat16, torch.channels_last, 128, (32, 32), True)
        assert {name for name, _ in compiled} == {"_convolve", "_weight_gradient", "_sum_pieces"}
        compiled.clear()


def test_tunings_that_the_sweep_tries_of_the_sampler_compile() -> None:
    for launch in sweep.neighbours(SAMPLING[2]["sm_90"][256].position):
        assert sampler_kernel(2, "sm_90", launch, "position")[1].asm["cubin"]
