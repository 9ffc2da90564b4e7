"""The first use of the library, in processes that have a cache of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqfast.ops import build, library

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, sys, warnings
from pathlib import Path
import torch
from vqfast.ops import build, library, registry
from vqfast.functional import masked_conv2d, nearest_code
build.PREBUILT = Path("not built")
sets = {sets}
build.INSTRUCTION_SETS = {{name: flags for name, flags in build.INSTRUCTION_SETS.items() if name in sets}}
"""
USE = "print(nearest_code(torch.ones(3, 2), torch.eye(2) * 2).tolist())"


def start(code: str, cache: Path, sets: tuple[str, ...] = ("portable",), **environment: str):
    """A process that runs ``code``. It compiles the kernels for few instruction sets, which is quicker."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    inherited = {name: value for name, value in os.environ.items() if name != "VQFAST_BACKEND"}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE.format(sets=sets) + code],
        env=inherited | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


@pytest.fixture
def counted(tmp_path: Path) -> tuple[str, Path]:
    """A script that copies the library instead of compiling it, and the file where it lists its calls."""
    if (reason := library.unavailable()) is not None:
        pytest.skip(reason)
    calls = tmp_path / "calls"
    script = tmp_path / "compiler"
    made = build.PREBUILT if build.PREBUILT.exists() else library._compiled()
    script.write_text(f"""#!/bin/sh
echo "$@" >> {calls}
case "$*" in *-fno-such-instructions*) exit 1;; *-shared*) made={made};; *) made=/dev/null;; esac
while [ "$1" != -o ]; do shift; done
cp $made "$2"
""")
    script.chmod(0o755)
    return str(script), calls


def links(calls: Path) -> int:
    return sum("-shared" in line for line in calls.read_text().splitlines())


def test_import_compiles_nothing(tmp_path: Path, counted) -> None:
    compiler, calls = counted
    finish(start("import vqfast", tmp_path / "cache", CXX=compiler))
    assert not calls.exists()
    assert not (tmp_path / "cache").exists()


def test_concurrent_first_uses_compile_once_and_later_ones_do_not(tmp_path: Path, counted) -> None:
    compiler, calls = counted
    for count in (3, 1):
        processes = [start(USE, tmp_path, CXX=compiler, VQFAST_BACKEND="native") for _ in range(count)]
        assert {finish(process) for process in processes} == {"[0, 0, 0]\n"}
    assert links(calls) == 1
    assert len(list(tmp_path.glob("vqfast/*.so"))) == 1


def test_damaged_library_is_built_again(tmp_path: Path, counted) -> None:
    compiler, calls = counted
    finish(start(USE, tmp_path, CXX=compiler))
    (built,) = tmp_path.glob("vqfast/*.so")
    whole = built.read_bytes()
    for damaged in (whole[:-5000], whole[:1000] + whole[:999:-1]):
        built.write_bytes(damaged)
        assert finish(start(USE, tmp_path, CXX=compiler, VQFAST_BACKEND="native")) == "[0, 0, 0]\n"
        assert len(built.read_bytes()) == len(whole)
    assert links(calls) == 3


FALLBACK = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        nearest_code(torch.ones(3, 2), torch.eye(2))
print(len(caught), caught[0].message)
print(registry.refusal("nearest", "native", torch.zeros(1)))
"""


@pytest.mark.parametrize(
    "compiler, reason",
    [("no-such-compiler", "no C++ compiler (no-such-compiler) found"), ("false", "failed")],
)
def test_without_a_working_compiler_pytorch_runs_and_one_warning_says_why(
    tmp_path: Path, compiler: str, reason: str
) -> None:
    warning, refusal = finish(start(FALLBACK, tmp_path, CXX=compiler)).splitlines()
    assert warning.startswith("1 vqfast runs plain PyTorch")
    assert reason in warning
    assert refusal.startswith("native nearest can't run here: ")
    assert reason in refusal
    assert not list(tmp_path.glob("vqfast/*.so"))


def test_a_system_without_locks_of_files_runs_pytorch(tmp_path: Path, counted) -> None:
    warning, refusal = finish(
        start("sys.modules['fcntl'] = None\n" + FALLBACK, tmp_path, CXX=counted[0])
    ).splitlines()
    assert warning.startswith("1 vqfast runs plain PyTorch")
    assert "locks of files need a POSIX system" in refusal


def test_forced_native_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    process = start(USE, tmp_path, CXX="no-such-compiler", VQFAST_BACKEND="native")
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "NoBackendError: native nearest can't run here: no C++ compiler (no-such-compiler) found" in errors


def test_cache_that_cannot_be_written_is_a_reason(tmp_path: Path, counted) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    assert "blocked" in finish(start(FALLBACK, blocked, CXX=counted[0]))


def test_instruction_set_that_the_compiler_does_not_know_is_left_out(tmp_path: Path, counted) -> None:
    strange = "build.INSTRUCTION_SETS['avx512'] = ['-fno-such-instructions']\n"
    out = finish(start(strange + USE, tmp_path, CXX=counted[0], VQFAST_BACKEND="native"))
    assert out == "[0, 0, 0]\n"


HARD = """
torch.manual_seed(0)
wrong = 0
sizes = [(0, 500, 129, 65, ()), (1000, 999, 200, 7, ()), (-100, 9, 33, 130, (2, 3))]
sizes += [(9, 20, 4000, 16, ()), (5, 200, 400, 70, ())]
for offset, n, k, d, lead in sizes:
    x, codebook = torch.randn(*lead, n, d) + offset, torch.randn(*lead[1:], k, d) + offset
    distances = torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    chosen = distances.gather(-1, nearest_code(x, codebook)[..., None])[..., 0]
    wrong += int((chosen > distances.amin(-1) * (1 + 1e-6)).sum())
tolerances = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 5e-3}
for dtype, tolerance in tolerances.items():
    x, weight = torch.randn(2, 9, 5, 70).to(dtype), torch.randn(70, 9, 3, 3).to(dtype)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    results = []
    for name in ("native", "reference"):
        os.environ["VQFAST_BACKEND"] = name
        out = masked_conv2d(x, weight, None, mask_type="B", activation="gate")
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (x, weight))))
    for a, b in zip(*results):
        wrong += int(((a - b).abs() > tolerance * b.abs().max()).sum())
print(wrong)
"""


@pytest.mark.parametrize("instruction_set", build.INSTRUCTION_SETS)
def test_every_instruction_set_is_exact(tmp_path: Path, keeper: str, instruction_set: str) -> None:
    """It is asked for, and so compiled and run."""
    if (reason := library.unavailable()) is not None:
        pytest.skip(reason)
    if instruction_set not in build.own_instruction_sets():
        pytest.skip(f"this CPU has no {instruction_set}")
    code = f"{HARD}print(library.instruction_set())"
    asked = {"VQFAST_BACKEND": "native", "VQFAST_ISA": instruction_set, "CXX": keeper}
    assert finish(start(code, tmp_path, (instruction_set,), **asked)) == f"0\n{instruction_set}\n"


def test_an_instruction_set_that_can_not_run_is_explained(tmp_path: Path, counted) -> None:
    unknown = start(FALLBACK, tmp_path, CXX=counted[0], VQFAST_ISA="mmx")
    errors = unknown.communicate()[1]
    assert unknown.returncode == 1
    assert "ValueError: VQFAST_ISA is 'mmx'; want one of portable" in errors
    lacking = "build.CPU = Path('cpuinfo')\nbuild.CPU.write_text('flags: fpu')\n"
    lacking += "build.INSTRUCTION_SETS['future'] = ['-mfuture']\n"
    process = start(f"os.chdir({str(tmp_path)!r})\n{lacking}{FALLBACK}", tmp_path, VQFAST_ISA="future")
    warning, refusal = finish(process).splitlines()
    assert warning.startswith("1 vqfast runs plain PyTorch on CPUs, which is slower: ")
    assert "VQFAST_ISA is 'future', which this CPU lacks; it has portable" in warning
    assert "which this CPU lacks" in refusal
