"""Triton kernels compiled ahead of time, without a GPU: their resources, and their loops' instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vqfast.ops.nearest import triton as nearest
from vqfast.ops.nearest.triton_kernels import _search
from vqfast.ops.nearest.tunings import Tuning
from vqfast.sampling.executors import triton as executor
from vqfast.sampling.executors import triton_kernel
from vqfast.sampling.executors.triton_tunings import Launch

POINTERS = {
    **dict.fromkeys(["x", "codebook", "pivot", "scratch", "quantized", "errors"], "*fp32"),
    **dict.fromkeys(["sums", "grad", "out"], "*fp32"),
    **dict.fromkeys(["grad_codebook_loss", "grad_commitment_loss"], "*fp32"),
    "hi": "*fp16",
    **dict.fromkeys(["longs", "indices", "counts", "order", "ends"], "*i64"),
    "factor": "fp32",
}  # fmt: skip
UNITS = {"sd", "ed", "qd", "gd", "od", "b"}  # contiguous rows
ODD = {"N", "K", "c", "tiles", "counters", "listed", "step", "samples", "factor"}  # not multiples of 16
# What isn't arithmetic of a thread: memory, tensor cores, what a warp computes once, control.
NOT_ALU = re.compile(
    "LD|ST|ATOM|RED|CCTL|U[A-Z]|R2UR|S2|CS2R|HGMMA|HMMA|UTC|WARP|BAR|DEPBAR|MEMBAR|B[A-Z]|NOP|EXIT|YIELD|SYNCS"
    "|SHFL|CALL|RET|ERRBAR|FENCE|ELECT|PLOP3"
)
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


class Loop(NamedTuple):
    """A loop of a compiled kernel: its opcodes with their counts, and whether no other loop is inside."""

    opcodes: Counter[str]
    innermost: bool

    @property
    def alu(self) -> int:
        """Instructions of each thread's own arithmetic."""
        return sum(count for opcode, count in self.opcodes.items() if not NOT_ALU.match(opcode))

    def of(self, *starts: str) -> int:
        """Instructions whose names begin with one of ``starts``."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith(starts))


def target_of(arch: str) -> GPUTarget:
    """The target of ``sm_90``, ``gfx942`` ..."""
    hip = arch.startswith("gfx")
    return GPUTarget("hip", arch, 64) if hip else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def build(
    kernel: Any,
    arch: str,
    constants: Mapping[str, Any],
    warps: int,
    stages: int,
    pointers: Mapping[str, str] | None = None,
) -> Any:
    """Compiles a kernel. ``pointers``: all that are aligned, instead of all but the ``ODD``."""
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


def _cuobjdump(compiled: Any, option: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        return subprocess.run([program, option, cubin], capture_output=True, text=True, check=True).stdout


def spilled(compiled: Any) -> int:
    """Bytes a thread (NVIDIA), registers (AMD)."""
    if "amdgcn" in compiled.asm:
        return _number(r"vgpr_spill_count: *(\d+)", compiled.asm["amdgcn"])
    return _number(r"STACK:(\d+)", _cuobjdump(compiled, "--dump-resource-usage"))


def registers(compiled: Any) -> int:
    """Registers of a thread (NVIDIA)."""
    return _number(r"REG:(\d+)", _cuobjdump(compiled, "--dump-resource-usage"))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None
    return int(found[1])


def assembly(compiled: Any) -> str:
    """PTX, or AMD's assembly."""
    text: str = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    return text


def loops(compiled: Any) -> list[Loop]:
    """The loops of a kernel for an NVIDIA GPU, the shortest first; an outer one has the inner one's too."""
    listing = INSTRUCTION.findall(_cuobjdump(compiled, "-sass"))
    instructions = [(int(at, 16), opcode, rest) for at, opcode, rest in listing]
    spans = []
    for at, opcode, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode.startswith("BRA") and target and int(target[1], 16) < at:
            spans.append((int(target[1], 16), at))
    found = [
        Loop(
            Counter(opcode.split(".")[0] for at, opcode, _ in instructions if begin <= at <= end),
            not any(begin <= inner and last <= end for inner, last in spans if (inner, last) != (begin, end)),
        )
        for begin, end in spans
    ]
    return sorted(found, key=lambda loop: loop.opcodes.total())


def before_products(compiled: Any) -> list[Counter[str]]:
    """Opcodes from each meeting of the sampler's blocks to the first product behind it; the draw has none."""
    opcodes = [opcode for _, opcode, _ in INSTRUCTION.findall(_cuobjdump(compiled, "-sass"))]
    marks = [
        (at, opcode.startswith("LDG"))
        for at, opcode in enumerate(opcodes)
        if opcode.startswith(("LDG.E.STRONG", "FFMA", "HMMA", "HGMMA", "DFMA"))
    ]
    return [
        Counter(opcodes[meeting:product])
        for (meeting, meets), (product, more) in pairwise(marks)
        if meets and not more and not opcodes[product].startswith("DFMA")
    ]


def search_kernel(arch: str, tuning: Tuning, channels: int, write: bool = False) -> Any:
    """``_search``, compiled for contiguous float32 rows."""
    constants = {"WIDE": tl.float32, "DIMS": 1, "WRITE": write, **nearest.search_constants(tuning, channels)}
    return build(_search, arch, constants, tuning.warps, tuning.stages)


def search_loop(compiled: Any) -> Loop:
    """The loop of ``_search`` over the codebook: on tensor cores, no loop inside, the most minima."""
    products = [loop for loop in loops(compiled) if loop.innermost and loop.of("HMMA", "HGMMA", "UTC")]
    return max(products, key=lambda loop: loop.of("FMNMX"))


def of_a_score(loop: Loop, scores: float) -> dict[str, float]:
    """Instructions of arithmetic by their rate, of a loop in which a thread has ``scores`` scores."""
    full = loop.of("FADD", "FMUL", "FFMA")
    return {"full": round(full / scores, 3), "other": round((loop.alu - full) / scores, 3)}


def sampler_kernel(
    size: int,
    arch: str,
    launch: Launch,
    which: str,
    head: int = 0,
    codes: int = 1,
    mixture: bool = False,
    front: bool = False,
) -> tuple[dict[str, object], Any]:
    """Its constants, and the kernel compiled for ``size`` bytes a value, attentions of ``head`` channels.

    With ``front`` it draws several rows side by side.
    """
    dtype, name = {2: (torch.bfloat16, "bf16"), 4: (torch.float32, "fp32"), 8: (torch.float64, "fp64")}[size]
    pointers = {
        **dict.fromkeys(["jobs", "places", "labels", "known", "numbers", "seed", "out"], "*i64"),
        **dict.fromkeys(["values", "weights", "tables"], f"*{name}"),
        **dict.fromkeys(["codes", "counters"], "*i32"),
        **{"sums": "*fp64" if size == 8 else "*fp32", "temperature": "*fp64"},
    }
    constants = executor.constants(launch, dtype, which == "position", head, codes, mixture, front=front)
    return constants, build(triton_kernel.sample, arch, constants, launch.warps, launch.stages, pointers)
