"""Every configuration of the Triton kernels, compiled ahead of time: no GPU needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product

import pytest
import torch

triton = pytest.importorskip("triton")

from benchmarks import compiled as aot  # noqa: E402
from benchmarks import sweep  # noqa: E402
from benchmarks.compiled import assembly, build, sampler_kernel, search_kernel, spilled, target_of  # noqa: E402
from vqfast.ops import registry  # noqa: E402
from vqfast.ops.masked_conv import tunings as conv_tunings  # noqa: E402
from vqfast.ops.nearest.tunings import ANY, SEARCH, pick  # noqa: E402
from vqfast.sampling.executors.triton_tunings import SAMPLING  # noqa: E402
from vqfast.sampling.executors.triton_tunings import pick as pick_sampler  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel can't be compiled"),
    # Triton 3.9 warns about a default of 3.10 that the kernels don't rely on.
    pytest.mark.filterwarnings("ignore"),
]

SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a block
PRODUCT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma", "sm_100": "tcgen05.mma", "gfx942": "mfma"}
PINNED = triton.__version__.startswith("3.9.")
CASES = [(arch, widest) for arch, lines in SEARCH.items() for widest in lines]


def in_turn(cases: list[tuple], kept: Callable[[int], bool] = lambda turn: True) -> list:
    """Cases that begin with an architecture: the NVIDIA ones take turns, and ``--every`` runs the others.

    A configuration takes seconds to compile, and is nearly the same for each of them. Turns that aren't
    ``kept`` are run with ``--every`` alone.
    """
    listed: dict[tuple, list[str]] = {}
    for arch, *rest in cases:
        if arch.startswith("sm"):
            listed.setdefault(tuple(rest), []).append(arch)
    turns = {
        (arches[turn % len(arches)], *rest)
        for turn, (rest, arches) in enumerate(listed.items())
        if kept(turn)
    }
    marks = {True: [], False: [pytest.mark.every]}
    return [pytest.param(*case, marks=marks[case in turns or case[0].startswith("gfx")]) for case in cases]


def assert_not_spilled(kernel) -> None:
    """A few values may be spilled that stay the same for long, but none in a loop that multiplies."""
    assert spilled(kernel) <= 64
    if spilled(kernel) and "cubin" in kernel.asm:
        assert_fast_loops(kernel)


def assert_fast_loops(kernel) -> None:
    for loop in aot.loops(kernel):
        if loop.innermost and loop.of("HMMA", "HGMMA", "UTC", "FFMA"):
            assert not loop.of("STL", "LDL")


@pytest.mark.parametrize("arch, widest", in_turn(CASES))
def test_search_fits_the_chip_without_spills_on_tensor_cores(arch, widest) -> None:
    tuning = SEARCH[arch][widest]
    compiled = search_kernel(arch, tuning, 1024 if widest == ANY else widest, write=True)
    assert compiled.metadata.shared <= SHARED[arch]
    assert spilled(compiled) <= 160  # beside the loops: the vectors' numbers and norms
    if arch.startswith("sm"):
        assert_fast_loops(compiled)
    assert PRODUCT[arch] in assembly(compiled)


@pytest.mark.parametrize("codes, channels, most", [(512, 64, 3.3), (8192, 256, 3.6)])
def test_a_score_takes_few_instructions(codes, channels, most) -> None:
    """Of arithmetic, with all that the loop over the codebook has beside it; half of flash-kmeans'."""
    from benchmarks import peer_kernel, predict

    tuning = pick(SEARCH, "sm_90", channels)
    loop = aot.search_loop(search_kernel("sm_90", tuning, channels))
    scores = tuning.vectors * tuning.codes / (32 * tuning.warps)
    assert 2 < loop.alu / scores <= most
    size = (131072, codes, channels)
    try:
        peer = peer_kernel.counts(*size)
    except ImportError:  # then as it was counted when it was there
        peer = json.loads(predict.COUNTS.read_text())["flash-kmeans"][str(size)]
    assert loop.alu / scores < 0.5 * (peer["full"] + peer["other"])
    assert loop.of("SHFL", "BAR") / scores < 0.1  # no thread asks another


@pytest.mark.parametrize("arch, wide", in_turn(list(product(SEARCH, ["fp32", "fp64"]))))
def test_channels_first_float64_and_the_small_kernels_compile(arch, wide) -> None:
    import triton.language as tl

    from vqfast.ops.nearest import triton as nearest
    from vqfast.ops.residual import triton as residual

    for kernel, constants in [
        (nearest._prepare, {"WIDE": getattr(tl, f"float{wide[2:]}"), **nearest.PREPARE_CONSTANTS}),
        (residual._count, {"SUMS": True, "BM": 64, "BD": 64}),
        (residual._segments, {"DIFFERENCE": True, "BM": 64, "BD": 64}),
        (residual._backward, {"ATOMIC": True, "BM": 64, "BD": 64}),
    ]:
        if wide == "fp32":
            assert_not_spilled(build(kernel, arch, constants, 4, 3))
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


def test_fallback_tunings_fit_consumer_chips() -> None:
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
    monkeypatch.setattr(conv, "_plans", {})

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


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(
    "arch, layout, arithmetic",
    [
        *in_turn(list(product(conv_tunings.CONVOLVE, LAYOUTS, ARITHMETIC))),
        *(("sm_86", torch.channels_last, arithmetic) for arithmetic in ARITHMETIC),
    ],
)
def test_convolution_fits_the_chip_without_spills_on_tensor_cores(
    conv_kernels, set_precision, arch, arithmetic, layout, tmp_path
) -> None:
    dtype, precision = ARITHMETIC[arithmetic]
    set_precision(precision)
    instruction = PRODUCT.get(arch, "mma.sync")
    if instruction != "mfma" and arithmetic == conv_tunings.DOUBLE:
        plain = arch == "sm_86" or (arch == "sm_100" and not PINNED)
        instruction = "fma.rn.f64" if plain else "mma.sync"
    elif instruction != "mfma" and arithmetic == conv_tunings.IEEE:
        instruction = "fma.rn.f32"
    compiled = conv_kernels(arch, dtype, layout, 128, (32, 32))
    assert len(compiled) == 7
    for name, kernel in compiled:
        assert kernel.metadata.shared <= SHARED.get(arch, 99 << 10)
        assert_not_spilled(kernel)
        assert name in ("_gate", "_sum_pieces") or instruction in assembly(kernel)


@pytest.mark.parametrize("arch, layout", in_turn(list(product(conv_tunings.CONVOLVE, LAYOUTS))))
def test_convolution_of_few_channels_on_an_odd_grid_compiles(conv_kernels, arch, layout) -> None:
    for _, kernel in conv_kernels(arch, torch.float16, layout, 3, (5, 7)):
        assert_not_spilled(kernel)


SAMPLERS = [
    (arch, size, widest, which)
    for size, table in SAMPLING.items()
    for arch, lines in table.items()
    for widest in lines
    for which in ("row", "position")
]


# rows and positions take turns too
@pytest.mark.parametrize("arch, size, widest, which", in_turn(SAMPLERS, lambda turn: turn % 4 in (0, 3)))
def test_sampler_fits_the_chip_without_spills(arch, size, widest, which) -> None:
    launch = getattr(SAMPLING[size][arch][widest], which)
    constants, compiled = sampler_kernel(size, arch, launch, which)
    assert compiled.metadata.shared <= SHARED[arch]
    text = assembly(compiled)
    meets = launch.members > 1
    assert ("acquire" in text and "release" in text) == meets
    if arch == "gfx942":  # a barrier there doesn't wait until the block's stores can be read by others
        assert not meets and "global_atomic" not in text
    if size < 8:  # float64 is slow anyway
        assert_not_spilled(compiled)
    few = launch.rows < 64 and arch != "gfx942"  # no wgmma
    on_tensor_cores = constants["DOT"] and (size == 2 or arch == "gfx942")
    assert (("mma.sync" if few else PRODUCT[arch]) in text) == on_tensor_cores


# images, rows that are drawn side by side
FRONTS = [
    (arch, size, *front, which)
    for size in (2, 4)
    for arch in SAMPLING[size]
    for front in ((1, 2), (1, 4), (1, 8), (16, 4), (64, 4), (256, 2))
    for which in ("row", "position")
]


@pytest.mark.parametrize(
    "arch, size, images, rows, which", in_turn(FRONTS, lambda turn: turn % 4 in (0, 3)), ids=str
)
def test_sampler_of_rows_side_by_side_fits_the_chip_without_spills(arch, size, images, rows, which) -> None:
    launch = getattr(pick_sampler(SAMPLING[size][arch], images, rows), which)
    compiled = sampler_kernel(size, arch, launch, which, front=True)[1]
    assert compiled.metadata.shared <= SHARED[arch]
    assert_not_spilled(compiled)


@pytest.mark.parametrize("size, images, rows", [(2, 8, 1), (4, 128, 1), (2, 1, 4), (4, 1, 4), (2, 16, 4)])
def test_a_product_of_the_sampler_takes_at_most_two_barriers(size, images, rows) -> None:
    launch = pick_sampler(SAMPLING[size]["sm_90"], images, rows).position
    kernel = sampler_kernel(size, "sm_90", launch, "position", front=rows > 1)[1]
    products = [loop for loop in aot.loops(kernel) if loop.innermost and loop.of("FFMA", "HMMA") > 2]
    products = [loop for loop in products if loop.of("LDG") and not loop.of("DFMA")]  # not the draw
    assert products
    assert all(loop.of("BAR") <= 2 for loop in products)


@pytest.mark.parametrize("size, images, rows", [(2, 4, 1), (2, 16, 1), (4, 8, 1), (2, 256, 1), (2, 1, 4)])
def test_a_product_of_the_sampler_has_its_addresses_before_the_blocks_meet(
    monkeypatch, size, images, rows
) -> None:
    """After that there is no division and no table, which has 64 bits a number; else, if nothing is ahead."""
    launch = pick_sampler(SAMPLING[size]["sm_90"], images, rows).position
    (found,) = aot.before_products(sampler_kernel(size, "sm_90", launch, "position", front=rows > 1)[1])
    assert not any(opcode.startswith(("MUFU", "I2F", "LDG.E.64")) for opcode in found)
    assert found["LDG.E.128"] >= launch.ahead  # values
    if size == 2:  # else values that are added have 32 bits too
        assert found["LDG.E"] <= launch.ahead * launch.rows  # codes
    monkeypatch.setattr(type(launch), "ahead", 0)
    (undone,) = aot.before_products(sampler_kernel(size, "sm_90", launch, "position", front=rows > 1)[1])
    assert undone["LDG.E.64"]


@pytest.mark.parametrize("size, images, head", [(2, 4, 16), (2, 4, 64), (4, 4, 128), (2, 256, 64)])
def test_an_attention_of_the_sampler_has_its_first_addresses_before_the_blocks_meet(
    size, images, head
) -> None:
    """After that there is no division and no table. Half of what there is, is for later blocks of keys."""
    launch = pick_sampler(SAMPLING[size]["sm_90"], images).position
    attention, _ = aot.before_products(sampler_kernel(size, "sm_90", launch, "position", head=head)[1])
    assert not any(opcode.startswith(("MUFU", "I2F", "LDG.E.64")) for opcode in attention)
    # of wide heads 2700 where each key's and value's place is computed anew
    assert attention.total() <= (500 if PINNED else 650)


@pytest.mark.parametrize(
    "size, arch, widest", [(2, "sm_90", 4), (4, "sm_90", ANY), (2, "gfx942", 512), (8, "sm_80", ANY)]
)
def test_sampler_with_a_draw_from_mixtures_fits_the_chip_without_spills(size, arch, widest) -> None:
    launch = SAMPLING[size][arch][widest].position
    compiled = sampler_kernel(size, arch, launch, "position", codes=3, mixture=True)[1]
    assert compiled.metadata.shared <= SHARED[arch]
    if size < 8:
        assert_not_spilled(compiled)


@pytest.mark.parametrize(
    "size, arch, widest, head",
    [(2, "sm_90", 4, 16), (4, "sm_90", ANY, 128), (2, "gfx942", 512, 64), (8, "sm_80", ANY, 32)],
)
def test_sampler_with_attention_fits_the_chip_without_spills(size, arch, widest, head) -> None:
    launch = SAMPLING[size][arch][widest].position
    compiled = sampler_kernel(size, arch, launch, "position", head)[1]
    assert compiled.metadata.shared <= SHARED[arch]
    if size < 8:
        assert_not_spilled(compiled)


# What the sweep of the GPU gate tries around a line has to compile; whether it fits the chip it finds out.


@pytest.mark.every
def test_tunings_that_the_sweep_tries_of_the_search_compile() -> None:
    for tuning in sweep.neighbours(pick(SEARCH, "sm_90", 64)):
        assert search_kernel("sm_90", tuning, 64).asm["cubin"]


@pytest.mark.every
def test_tunings_that_the_sweep_tries_of_the_convolution_compile(conv_kernels) -> None:
    half, lines = conv_tunings.HALF, (conv_tunings.CONVOLVE["sm_90"], conv_tunings.WEIGHT["sm_90"])
    for tunings_of_both in zip(*(sweep.neighbours(each[half]) for each in lines), strict=True):
        with ExitStack() as stack:
            for each, tuning in zip(lines, tunings_of_both, strict=True):
                stack.enter_context(sweep.replaced(each, half, tuning))
            compiled = conv_kernels("sm_90", torch.bfloat16, torch.channels_last, 128, (32, 32), True)
        assert {name for name, _ in compiled} == {"_convolve", "_weight_gradient", "_sum_pieces"}
        compiled.clear()


@pytest.mark.every
def test_tunings_that_the_sweep_tries_of_the_sampler_compile() -> None:
    for launch in sweep.neighbours(SAMPLING[2]["sm_90"][256].position):
        assert sampler_kernel(2, "sm_90", launch, "position")[1].asm["cubin"]
